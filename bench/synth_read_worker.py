"""One reader of bench/synth_read.py, in its own environment: python synth_read_worker.py lerobot|atoll FOLDER"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROWS, BATCH = 1500, 64
COLUMNS = ("observation.state", "action", "next.reward", "timestamp")


def main() -> None:
    peer, folder = sys.argv[1], sys.argv[2]
    open_it = {"lerobot": lerobot, "atoll": atoll}[peer]
    size, one, many, backend = open_it(folder)
    chance = np.random.default_rng(0)
    ids = chance.integers(size, size=ROWS).tolist()
    for i in ids[:50]:
        one(i)
    told = {"one by one": timed(lambda: [one(i) for i in ids])}
    if many:
        batches = [ids[k : k + BATCH] for k in range(0, ROWS, BATCH)]
        told[f"by {BATCH}"] = timed(lambda: [many(batch) for batch in batches])
    rates = {kind: ROWS / wall for kind, (wall, _) in told.items()}
    cpu = {kind: ROWS / spent for kind, (_, spent) in told.items()}
    print(json.dumps({"rows_per_s": rates, "rows_per_cpu_s": cpu, "sample": sample(one, ids[:40]), "backend": backend}))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def sample(one: Callable[[int], dict], ids: list[int]) -> dict:
    """Of some rows: a digest of their numbers, and the mean colours of their pictures, 0 to 255."""
    told, colours = hashlib.sha256(), []
    for i in ids:
        row = one(i)
        for name in COLUMNS:
            told.update(np.asarray(row[name], np.float32).tobytes())
        for name in sorted(name for name in row if name.startswith("observation.images.")):
            colours.append((np.asarray(row[name]).mean(axis=(1, 2)) * 255).tolist())
    return {"numbers": told.hexdigest(), "colours": colours}


def lerobot(folder: str) -> tuple[int, Callable, None, str]:
    try:
        from torchcodec.decoders import VideoDecoder

        backend = "torchcodec" if VideoDecoder else ""
    except (ImportError, RuntimeError, OSError):
        backend = "pyav"
    stub = Path(__file__).resolve().parents[1] / "tests/e2e/clients/lerobot_stub"
    sys.path.insert(0, str(stub))
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    data = LeRobotDataset("bench/data", root=folder, video_backend=backend)
    return len(data), lambda i: data[i], None, backend


def atoll(folder: str) -> tuple[int, Callable, Callable, str]:
    """Pictures as LeRobot gives them: float32 of 0 to 1, colours first."""
    from atoll.physical.synth.dataset import IMAGES, Dataset

    data = Dataset(Path(folder))

    def many(ids: list[int]) -> dict:
        rows = data.rows(ids)
        for name in rows:
            if name.startswith(IMAGES):
                rows[name] = np.ascontiguousarray(rows[name].transpose(0, 3, 1, 2), np.float32) / 255
        return rows

    return len(data), lambda i: {name: column[0] for name, column in many([i]).items()}, many, "av"


main()
