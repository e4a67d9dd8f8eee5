"""Videos: the same frames make the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from atoll.core.manifest import Image
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.cameras import Cameras

CHILD = """
import sys
from pathlib import Path
import numpy as np
from atoll.physical.synth.video import encode_video, write_video

folder = Path(sys.argv[1])
for name, pictures in np.load(folder / "pictures.npz").items():
    write_video(folder / f"{name}.mp4", pictures, 20)
    (folder / f"{name}.seekable.mp4").write_bytes(encode_video(pictures, 20))
"""


def film(height: int, width: int) -> np.ndarray:
    """Pictures (60, height, width, 3) of an arm that does as it likes."""
    sim, chance = Sim(load_task("reach"), 1), np.random.default_rng(0)
    sim.reset([0])
    with Cameras(sim, [Image("wrist", height, width)]) as cameras:
        pictures = []
        for _ in range(60):
            sim.step(chance.uniform(sim.action_low, sim.action_high, sim.action.shape).astype(np.float32))
            pictures.append(cameras(sim.all)["wrist"][0])
    return np.stack(pictures)


def test_a_file_depends_on_its_frames_alone_not_on_what_was_in_memory_before(tmp_path: Path) -> None:
    np.savez(tmp_path / "pictures.npz", **{f"{h}x{w}": film(h, w) for h, w in ((32, 48), (64, 64), (96, 96))})
    told = []
    for filled in ("0", "1", "85", "170", "255"):
        environment = os.environ | {"MALLOC_PERTURB_": filled}
        subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], env=environment, check=True, capture_output=True)
        told.append({path.name: path.read_bytes() for path in tmp_path.glob("*.mp4")})
    assert len(told[0]) == 6
    for name in told[0]:
        assert len({each[name] for each in told}) == 1, name
