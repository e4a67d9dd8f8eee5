"""Claims: ten demonstrations become a thousand in two minutes at 70 % acceptance, and a policy learned from them
succeeds nine times out of ten; 200 annotated pictures a CPU second; single rows of a LeRobot data set are read three
times as fast as LeRobot reads them.

`python bench/synth.py [--parts amplify,frames,read] [--runs 3] [--out bench/results/synth.json]`
A part is a module `synth_<part>.py` with `measure(runs) -> dict`; parts that are not asked for stay in the file.
"""

import argparse
import importlib
import json
import os
from pathlib import Path

from common import BENCH, exit_on_sigterm, provenance

PARTS = ("amplify", "frames", "read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "synth.json")
    options = parser.parse_args()
    exit_on_sigterm()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    told = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.parts.split(","):
        if part not in PARTS:
            parser.error(f"there is no part '{part}'; there are: {', '.join(PARTS)}")
        where = provenance()
        told[part] = where | importlib.import_module(f"synth_{part}").measure(options.runs)
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
