"""What a client notices when the region that answers dies: `python bench/resume.py [--parts ...] [--out FILE]`.

Parts: `stall` and `embedded` (how long the next token keeps the client waiting, by grade, against what it must cost: on
an engine of a fixed pace, and on the embedded one), `peers` (how many streams each gateway delivers whole when the
engine behind it dies in the middle), `chaos` (ten regions that are processes die at random under fifty streams), `rule`
(the same with half of the keys bound to the EU, of whose regions one is left), `none` (none is left), `sweep` (a cut at
every token of an answer), `among` (the same among 32 other streams of known tokens). Each part that runs replaces its
section of the results.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from common import REPO, BenchError, exit_on_sigterm, provenance

sys.path[:0] = [str(REPO / "tests" / "e2e"), str(REPO / "tests")]

import resume_peers  # noqa: E402
import resume_runs  # noqa: E402
import resume_stall  # noqa: E402

PARTS = ("stall", "embedded", "peers", "chaos", "rule", "none", "sweep", "among")
DEFAULT = "stall,embedded,peers"
LONG = {"chaos": resume_runs.chaos, "rule": resume_runs.chaos_with_rule, "none": resume_runs.none_left}
SECONDS = 300.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default = f"default: {DEFAULT}, or what --chaos and --sweep say"
    parser.add_argument("--parts", help=f"of {', '.join(PARTS)}, with commas ({default})")
    parser.add_argument("--chaos", type=float, metavar="SECONDS", help="parts 'chaos', 'rule', 'none', so long each")
    parser.add_argument("--sweep", type=int, metavar="STEP", nargs="?", const=1, help="parts 'sweep', 'among'")
    parser.add_argument("--cloud", metavar="URL", help="'sweep' on a cloud that is up (`make up`)")
    parser.add_argument("--key", help="that cloud's API key, of an administrator")
    parser.add_argument("--cuts", type=int, default=40, help="cuts a grade and streams a peer (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=REPO / "bench" / "results" / "resume.json")
    args = parser.parse_args()
    special = (["chaos", "rule", "none"] if args.chaos else []) + (["sweep", "among"] if args.sweep else [])
    args.names = args.parts.split(",") if args.parts else special or DEFAULT.split(",")
    args.chaos, args.sweep = args.chaos or SECONDS, args.sweep or 1
    if bool(args.cloud) != bool(args.key):
        parser.error("--cloud and --key belong together")
    if unknown := sorted(set(args.names) - set(PARTS)):
        parser.error(f"unknown parts {unknown}; there are: {', '.join(PARTS)}")
    return args


def run(part: str, args: argparse.Namespace, folder: Path) -> dict:
    if part == "sweep":
        if args.cloud:
            return {"cloud": "up already"} | resume_runs.sweep(args.cloud.rstrip("/"), args.key, args.sweep)
        return resume_runs.sweep_own(folder / part, args.sweep)
    if part == "among":
        return asyncio.run(resume_runs.among(folder / part, args.sweep))
    if made := LONG.get(part):
        return asyncio.run(made(folder / part, args.chaos, args.seed))
    if part == "stall":
        return asyncio.run(resume_stall.known_part(args.cuts, args.seed))
    if part == "embedded":
        return asyncio.run(resume_stall.embedded_part(folder / part, max(args.cuts // 4, 4), args.seed))
    return resume_peers.measure(folder, args.cuts)


def main() -> None:
    args = parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
        for part in args.names:
            told = provenance()
            section = told | run(part, args, Path(name))
            report = json.loads(args.out.read_text()) if args.out.exists() else {}
            report[part] = section
            args.out.write_text(json.dumps(report, indent=1) + "\n")
            print(json.dumps({part: section}, indent=1))
    print(f"written to {args.out}")


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
