"""Annotated 128x128 pictures of the arm's scene, beside MuJoCo's own renderer as it comes, of the same moments."""

import json
import os
import statistics
import sys
import time

import mujoco
import numpy as np

from atoll.physical.synth.pictures import Config, Studio

COUNT, FEW = 600, 24
"""Pictures a run: ours, and MuJoCo's, which takes a quarter of a second each."""
PIXEL = 1.0
"""What is drawn may reach past its corners by what a pixel covers."""


def measure(runs: int) -> dict:
    os.environ.setdefault("LP_NUM_THREADS", "0")  # as the worker of runs has it
    rows = [one(seed * COUNT) for seed in range(runs)]
    rates = {name: statistics.median(row[name] for row in rows) for name in ("annotated_per_cpu_s", "mujoco_per_cpu_s")}
    told = {"task": "pick-place", "picture": "128x128: colour, depth, segments", "medians": rates}
    told["ratio"] = round(rates["annotated_per_cpu_s"] / rates["mujoco_per_cpu_s"], 1)
    return told | {"runs": rows}


def one(seed: int) -> dict:
    checks = Checks()
    with Studio(Config(count=COUNT, formats=("coco",), seed=seed)) as studio:
        stream = studio.frames()
        next(stream)
        begin = time.process_time()
        kept = list(stream)
        ours = len(kept) / (time.process_time() - begin)
        told = {"seed": seed, "renderer": studio.renderer.engine, "annotated_per_cpu_s": round(ours, 1)}
        told["mujoco_per_cpu_s"] = round(mujocos(studio), 2)
    for frame in kept:
        checks.take(frame)
    told |= checks.told()
    print(json.dumps(told), file=sys.stderr, flush=True)
    return told


def mujocos(studio: Studio) -> float:
    """Pictures a CPU second of `mujoco.Renderer` with its defaults: three passes, nothing annotated."""
    with mujoco.Renderer(studio.model, studio.config.height, studio.config.width) as renderer:
        turns = (renderer.enable_depth_rendering, renderer.disable_depth_rendering)
        turns += (renderer.enable_segmentation_rendering, renderer.disable_segmentation_rendering)
        begin = time.process_time()
        for i in range(FEW):
            studio.sim.physics.batch.get_data(i % studio.sim.n, studio.data)
            mujoco.mj_forward(studio.model, studio.data)
            renderer.update_scene(studio.data, studio.camera)
            renderer.render()
            for begin_pass, end_pass in (turns[:2], turns[2:]):
                begin_pass()
                renderer.render()
                end_pass()
        return FEW / (time.process_time() - begin)


class Checks:
    """Masks against the kinematics: what is drawn of an object lies within its projected corners, and as far away."""

    def __init__(self) -> None:
        self.masks = self.outside = self.elsewhere = 0

    def take(self, frame) -> None:
        height, width = frame.picture.depth.shape
        for seen in frame.annotations:
            left, top, w, h = seen.box
            low, high = np.clip(seen.corners.min(axis=0), 0, (width, height)), seen.corners.max(axis=0)
            inside = left >= low[0] - PIXEL and top >= low[1] - PIXEL
            inside &= left + w <= high[0] + PIXEL and top + h <= high[1] + PIXEL
            reach = np.linalg.norm(seen.object.corners, axis=1).max()
            depth = frame.picture.depth[seen.mask]
            self.masks += 1
            self.outside += not inside
            self.elsewhere += bool((np.abs(depth - seen.position[2]) > reach + 1e-3).any())

    def told(self) -> dict:
        return {"masks": self.masks, "outside_corners": self.outside, "at_another_depth": self.elsewhere}
