"""Runs the stage `synth` in small parts: python synth_child.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

from atoll.physical.synth import stage

CONFIG = stage.Config("reach", demonstrations=4, amplify_to=21, images=True, cameras=("wrist",), height=32, width=48)


class Quiet:
    def progress(self, done: float, total: float, **figures: float) -> None:
        assert 0 <= done <= total


def main(folder: Path) -> None:
    stage.BLOCK = 5
    stage.run(CONFIG, {}, folder, Quiet())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
