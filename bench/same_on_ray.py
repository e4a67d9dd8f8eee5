"""The same recipe here and on a Ray cluster: the same digests, and what the way there costs.

pip install 'atoll[ray]'
python bench/same_on_ray.py                        # on a cluster that it starts on this machine
python bench/same_on_ray.py --ray ray://head:10001
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from common import BENCH, REPO, provenance
from kills import QUICK, settle

sys.path.insert(0, str(REPO))

from atoll import app
from atoll.core.runs import Order, Step
from atoll.jobs.desk import Desk
from atoll.jobs.steps import versions
from atoll.settings import load

ORDER = Order(
    (
        Step("learn", "rl", {"task": "reach", "steps": 120_000}),
        Step("judge", "validate", {**QUICK, "videos": 0}, {"policy": "learn"}),
        Step("serve", "serve", {"name": "arm"}, {"policy": "learn", "report": "judge"}),
    ),
    "reach",
    seed=3,
)


def run(desk: Desk, order: Order) -> dict[str, Any]:
    began = time.monotonic()
    row = settle(desk, desk.submit(order)["id"])
    return {
        "ray": order.ray,
        "seconds": round(time.monotonic() - began, 1),
        "digests": {step["name"]: step["digest"] for step in row["steps"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", default="local")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "same_on_ray.json")
    wanted = parser.parse_args()
    told = {"bench": "same_on_ray", **provenance(), "versions": {**versions(), "ray": metadata.version("ray")}}
    with tempfile.TemporaryDirectory() as folder:
        desk = app.open_desk(load(environment={"HOME": folder}, data=folder))
        try:
            here, there = (run(desk, replace(ORDER, ray=ray)) for ray in ("", wanted.ray))
        finally:
            desk.close()
    same = here["digests"] == there["digests"]
    print(f"here {here['seconds']} s, on {wanted.ray} {there['seconds']} s; digests the same: {same}")
    wanted.out.write_text(json.dumps({**told, "same": same, "runs": [here, there]}, indent=1) + "\n")
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
