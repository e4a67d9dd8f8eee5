"""From nothing to a served policy, and a chat that moves the simulated arm through it.

    python bench/loop.py                     # a cloud with an empty data folder, `atoll loop pick-place`, ten chats
    python bench/loop.py --chats 20 --recipe reach

A recipe is ordered with the command of the guide, and has ten minutes. Then the embedded model is asked, with the
official `openai` SDK and function calling, to move the arm to points of the tool's own range; nobody has agreed to
motion yet, so the first call must be refused. What the model asks for is carried out in simulation by the policy that
the loop has put into service. A second client asks for more than the tool allows, and must be refused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import openai
from common import REPO, BenchError, provenance

MARK_S = 600.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipe", default="pick-place", help="one that serves an arm (default %(default)s)")
    parser.add_argument("--chats", type=int, default=10, help="requests to move the arm (default %(default)s)")
    parser.add_argument("--out", type=Path, default=REPO / "bench" / "results" / "loop.json")
    return parser.parse_args()


class Cloud:
    """`atoll up` with the model that chats, in an empty data folder."""

    def __init__(self, data: Path) -> None:
        argv = [sys.executable, "-m", "atoll.cli", "up", "--json", "--port", "0", "--data", str(data)]
        self.log = (data / "up.log").open("w")
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=REPO)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"atoll up did not start: {(data / 'up.log').read_text()[-2000:]}")
        told = json.loads(line)
        self.url, self.key, self.data = told["url"], told["key"], data

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def loop(cloud: Cloud, recipe: str) -> dict[str, Any]:
    """Seconds of the command and of its steps, and what the gate said."""
    began = time.monotonic()
    argv = [sys.executable, "-m", "atoll.cli", "loop", recipe, "--json"]
    done = subprocess.run(
        argv, env={**os.environ, "ATOLL_DATA": str(cloud.data)}, cwd=REPO, capture_output=True, text=True, timeout=1800
    )
    if done.returncode:
        raise BenchError(f"atoll loop {recipe} failed:\n{done.stderr[-2000:]}")
    run = json.loads(done.stdout)
    return {"recipe": recipe, "run": run["id"], "wall_s": round(time.monotonic() - began, 1), "steps": run["steps"]}


def wait_served(api: httpx.Client) -> dict[str, Any]:
    """The tool of the policy, once it is in service."""
    until = time.monotonic() + 60
    while (reply := api.get("/tool")).status_code != 200:
        if time.monotonic() > until:
            raise BenchError(f"the policy is not in service: {reply.text}")
        time.sleep(0.2)
    return reply.json()


def points(tool: dict[str, Any], count: int) -> list[dict[str, float]]:
    """Places within the range that the tool tells."""
    chance, told = random.Random(7), tool["function"]["parameters"]["properties"]
    ranges = {name: (said["minimum"], said["maximum"]) for name, said in told.items() if name != "seed"}
    return [{name: round(chance.uniform(*range_), 2) for name, range_ in ranges.items()} for _ in range(count)]


def chat(client: openai.OpenAI, tool: dict[str, Any], point: dict[str, float]) -> dict[str, float]:
    """What the model asks the tool for, when it is asked to move the arm to `point`."""
    where = ", ".join(f"{name} {value}" for name, value in point.items())
    asked: list[Any] = [{"role": "user", "content": f"Move the robot arm to {where}."}]
    said = client.chat.completions.create(model="max", messages=asked, tools=[tool], temperature=0)
    calls = said.choices[0].message.tool_calls or []
    return json.loads(calls[0].function.arguments) if calls else {}


def moved(api: httpx.Client, client: openai.OpenAI, tool: dict[str, Any], asked: list[dict]) -> list[dict[str, Any]]:
    rows = []
    for point in asked:
        arguments, began = chat(client, tool, point), time.monotonic()
        told = api.post("/run", json={"arguments": arguments}).json() if arguments else {}
        rows.append(
            {"asked": point, "called_with": arguments, "success": told.get("success", False),
             "limits": told.get("limits"), "final": told.get("final"), "error": told.get("error"),
             "episode_s": round(time.monotonic() - began, 2)}
        )  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def refusals(api: httpx.Client, tool: dict[str, Any], point: dict[str, float]) -> dict[str, Any]:
    """Before anybody agreed; and beyond the range."""
    told = {"without_consent": api.post("/run", json={"arguments": point}).status_code}
    name = next(iter(point))
    beyond = {**point, name: tool["function"]["parameters"]["properties"][name]["maximum"] + 1}
    told["beyond_the_range"] = api.post("/run", json={"arguments": beyond, "consent": True}).status_code
    return told


def main() -> None:
    args, told = parse_args(), provenance()
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
        cloud = Cloud(Path(name))
        try:
            made = loop(cloud, args.recipe)
            base = f"{cloud.url}/atoll/v1/policies/{args.recipe}"
            with (
                httpx.Client(base_url=base, headers={"authorization": f"Bearer {cloud.key}"}, timeout=150) as api,
                openai.OpenAI(base_url=f"{cloud.url}/v1", api_key=cloud.key) as client,
            ):
                tool = wait_served(api)
                asked = points(tool, args.chats)
                refused = refusals(api, tool, asked[0])
                api.post("/consent", json={"consent": True, "seconds": 600}).raise_for_status()
                rows = moved(api, client, tool, asked)
        finally:
            cloud.close()
    result = {
        **told, **made, "mark_s": MARK_S, "within_mark": made["wall_s"] <= MARK_S, "refused": refused,
        "chats": len(rows), "called_as_asked": sum(row["called_with"] == row["asked"] for row in rows),
        "succeeded": sum(row["success"] for row in rows),
        "episode_s": statistics.median(row["episode_s"] for row in rows), "rows": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name not in ("rows", "steps")}, indent=1))
    if not result["within_mark"] or refused != {"without_consent": 403, "beyond_the_range": 400}:
        raise SystemExit("a mark was missed")


if __name__ == "__main__":
    main()
