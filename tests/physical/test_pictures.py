"""Annotated pictures against what the kinematics say, and formats against readers that are not ours."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from mcap.reader import make_reader
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from rerun.chunk import RrdReader
from scipy.spatial import ConvexHull

from atoll.core.errors import InvalidRequest, NotFound
from atoll.physical.synth import render
from atoll.physical.synth.annotate import Annotator, objects_of, silhouette
from atoll.physical.synth.looks import Amounts
from atoll.physical.synth.pictures import Config, Studio, run
from atoll.physical.synth.render import FREE, camera_id, camera_of, open_renderer
from atoll.physical.synth.writers import WRITERS
from atoll.physical.synth.writers.coco import run_lengths

SCENE = """
<mujoco><worldbody>
  <light pos="0 0 3"/><geom name="floor" type="plane" size="2 2 .1"/>
  <camera name="above" pos="0 -1 1" xyaxes="1 0 0 0 0.7071 0.7071" fovy="45"/>
  <body name="box" pos="0 0 .1" euler="0 0 30"><freejoint/><geom type="box" size=".1 .08 .06"/></body>
  <body name="wall" mocap="true" pos=".06 -.2 .1"><geom type="box" size=".06 .01 .1"/></body>
</worldbody></mujoco>
"""


class Quiet:
    def progress(self, done: float, total: float, **figures: float) -> None:
        pass


def hull_mask(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    picture = Image.new("1", shape[::-1])
    ring = [tuple(points[i]) for i in ConvexHull(points).vertices]
    ImageDraw.Draw(picture).polygon(ring, fill=1)
    return np.asarray(picture)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("gl", [True, False], ids=["OpenGL", "rays"])
def test_masks_boxes_and_points_are_where_the_kinematics_put_them(gl: bool) -> None:
    config = Config(task="pick-place", count=6, height=256, width=256, steps=0, objects=("block",))
    with Studio(config, gl=gl) as studio:
        for frame in studio.frames():
            [block] = frame.annotations
            assert overlap(block.mask, hull_mask(block.corners, block.mask.shape)) > 0.85
            column, row = frame.camera.project(studio.data.body("block").xpos[None])[0].astype(int)
            assert block.mask[row, column]
            assert block.position[2] - 0.04 < frame.picture.depth[row, column] < block.position[2]
            assert np.allclose(frame.camera.see(studio.data.body("block").xpos[None])[0], block.position)
            left, top, width, height = block.full_box
            assert left <= block.box[0] + 1 and top <= block.box[1] + 1
            assert width >= block.box[2] - 2 and height >= block.box[3] - 2


@pytest.mark.parametrize("camera", [0, FREE], ids=["fixed", "free"])
def test_rays_see_what_opengl_draws(camera: int) -> None:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with open_renderer(model, 96, 128) as drawn, open_renderer(model, 96, 128, gl=False) as cast:
        assert "OpenGL" in drawn.engine and "ray casting" in cast.engine
        first, second = drawn.picture(data, camera), cast.picture(data, camera)
    assert (first.geoms == second.geoms).mean() > 0.99
    both = np.isfinite(first.depth) & np.isfinite(second.depth) & (first.geoms == second.geoms)
    assert np.abs(first.depth - second.depth)[both].max() < 0.01


CROWD = f"""
<mujoco>
  <worldbody>
    <light pos="0 0 4"/>
    <geom type="plane" size="1 1 .1"/>
    {"".join(f'<geom type="capsule" size=".1 .6" pos="{x} {y} .5" euler="{40 * x} {50 * y} 0"/>'
             for x in range(-3, 4) for y in range(-3, 4))}
    <camera name="plain" pos="0 -1 1" euler="70 20 0"/>
    <camera name="sensor" pos="1 1 1" euler="60 0 100" resolution="160 120" sensorsize=".004 .003"
            focal=".005 .004" principal=".001 .0005"/>
    <camera name="parallel" pos="0 0 3" projection="orthographic" fovy="2"/>
  </worldbody>
</mujoco>
"""


@pytest.mark.parametrize("camera", ["plain", "sensor", "parallel", ""])
def test_what_is_out_of_view_is_not_missed(camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mujoco.MjModel.from_xml_string(CROWD)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    groups = model.geom_group.copy()
    with open_renderer(model, 120, 160) as renderer:
        seen = renderer.picture(data, camera_id(model, camera))
        drawn = renderer._scene.ngeom
        assert np.array_equal(model.geom_group, groups)
        monkeypatch.setattr(render, "out_of_view", lambda model, *_: np.zeros(model.ngeom, bool))
        whole = renderer.picture(data, camera_id(model, camera))
        assert renderer._scene.ngeom == model.ngeom
    assert all(np.array_equal(a, b) for a, b in zip(seen, whole, strict=True))
    if camera in {"plain", "sensor"}:
        assert drawn < model.ngeom / 2


def test_an_object_that_is_hidden_in_part_tells_so(tmp_path: Path) -> None:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    box, wall = objects_of(model)
    with open_renderer(model, 120, 160) as renderer:
        picture = renderer.picture(data, 0)
        alone = silhouette(renderer, data, 0, box)
        again = renderer.picture(data, 0)
    assert np.array_equal(picture.rgb, again.rgb)
    camera = camera_of(model, data, 0, 120, 160)
    seen = {a.object.name: a for a in Annotator(model, (box, wall)).annotate(data, picture, camera)}
    assert not (seen["box"].mask & ~alone).any()
    assert 0.3 < seen["box"].area / alone.sum() < 0.95
    assert {0, 1, 2} >= set(seen["box"].keypoints[:, 2]) >= {1, 2}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_formats_are_read_by_their_own_readers(tmp_path: Path) -> None:
    config = Config(count=4, formats=("coco", "bop", "kitti", "mcap"), height=96, width=96)
    run(config, {}, tmp_path, Quiet())
    with Studio(config) as studio:
        frames = list(studio.frames())
    coco = COCO(tmp_path / "coco" / "annotations.json")
    names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
    assert set(names.values()) == {"block", "goal"}
    for frame in frames:
        rows = coco.loadAnns(coco.getAnnIds(imgIds=frame.number))
        masks = {names[row["category_id"]]: coco.annToMask(row).astype(bool) for row in rows}
        assert masks.keys() == {a.object.name for a in frame.annotations}
        assert all(np.array_equal(masks[a.object.name], a.mask) for a in frame.annotations)
    scene = tmp_path / "bop" / "train" / "000000"
    truth, info = (json.loads((scene / f"scene_gt{name}.json").read_text()) for name in ("", "_info"))
    for frame in frames:
        for pose, facts, a in zip(truth[str(frame.number)], info[str(frame.number)], frame.annotations, strict=True):
            assert np.allclose(np.reshape(pose["cam_R_m2c"], (3, 3)), a.rotation)
            assert np.allclose(np.array(pose["cam_t_m2c"]) / 1000, a.position)
            assert 0 < facts["visib_fract"] <= 1
        stored = np.asarray(Image.open(scene / "depth" / f"{frame.number:06d}.png")) * 0.1 / 1000
        assert np.abs(stored - frame.picture.depth)[stored > 0].max() < 1.1e-4
    with (tmp_path / "mcap" / "frames.mcap").open("rb") as file:
        topics = [channel.topic for _, channel, _ in make_reader(file).iter_messages()]
    assert topics.count("/camera/image") == topics.count("/objects") == 4
    labels = (tmp_path / "kitti" / "label_2" / "000000.txt").read_text().split("\n")[0].split()
    assert len(labels) == 15 and labels[0] == "block"


def test_a_recording_is_read_by_reruns_own_reader(tmp_path: Path) -> None:
    config = Config(count=3, formats=("rerun",), height=48, width=64)
    run(config, {}, tmp_path, Quiet())
    assert [path.name for path in (tmp_path / "rerun").iterdir()] == ["frames.rrd"]
    rows: dict[str, list[dict[str, Any]]] = {}
    for chunk in RrdReader(tmp_path / "rerun" / "frames.rrd").stream():
        batch = chunk.to_record_batch()
        kept = [name for name in batch.schema.names if name != "log_time"]
        rows.setdefault(chunk.entity_path, []).extend(batch.select(kept).to_pylist())
    with Studio(config) as studio:
        frames = list(studio.frames())
    for frame in frames:
        pictures = {name: rows[f"/world/camera/image/{name}"][frame.number] for name in ("rgb", "depth", "boxes")}
        assert all(row["frame"] == frame.number for row in pictures.values())
        assert bytes(pictures["rgb"]["Image:buffer"][0]) == frame.picture.rgb.tobytes()
        depth = np.frombuffer(bytes(pictures["depth"]["DepthImage:buffer"][0]), np.float32)
        assert np.array_equal(depth, np.where(np.isfinite(frame.picture.depth), frame.picture.depth, 0).ravel())
        assert pictures["boxes"]["Boxes2D:labels"] == [a.object.name for a in frame.annotations]
        for a in frame.annotations:
            poses = {row["frame"]: row for row in rows[f"/world/camera/{a.object.name}"]}
            assert np.allclose(poses[frame.number]["Transform3D:translation"][0], a.position)


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    """In a process of its own too. Rerun's recordings also tell when they were written."""

    def digests(folder: Path) -> dict[str, str]:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and ".work" not in p.parts)
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    code = (
        "import sys; from pathlib import Path; from atoll.physical.synth.pictures import *\n"
        "class Quiet: progress = lambda *told, **figures: None\n"
        "formats = tuple(name for name in WRITERS if name != 'rerun')\n"
        "run(Config(count=3, height=64, width=64, formats=formats), {}, Path(sys.argv[1]), Quiet())"
    )
    for name in "ab":
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, timeout=60)
    made = digests(tmp_path / "a")
    assert made == digests(tmp_path / "b")
    assert {name.split("/")[0] for name in made} == {*WRITERS.keys() - {"rerun"}, "card.json"}


def test_the_card_tells_all_of_the_pictures(tmp_path: Path) -> None:
    config = Config(count=3, height=48, width=64, seed=7, formats=("coco", "mcap"))
    run(config, {}, tmp_path, Quiet())
    card = json.loads((tmp_path / "card.json").read_text())
    with Studio(config) as studio:
        frames = list(studio.frames())
    assert card["scene"] == "pick-place" and card["pictures"] == 3 and card["parents"] == {}
    assert card["seeds"] == {"first": 7, "last": 9} and "Apache-2.0" in card["licence"]
    assert {"atoll", "mujoco", "numpy", "scipy", "pillow", "mcap"} <= card["versions"].keys()
    told, areas = card["statistics"], [a.area for f in frames for a in f.annotations if a.object.name == "block"]
    assert told["objects"]["block"]["pictures"] == len(areas)
    assert told["objects"]["block"]["area"] == {
        "min": min(areas), "mean": round(float(np.mean(areas)), 4), "max": max(areas)
    }  # fmt: skip
    reds = np.stack([frame.picture.rgb[..., 0] for frame in frames])
    assert told["colours"]["r"]["mean"] == round(float(reds.mean()), 4)
    assert 0 < told["depth"]["min"] < told["objects"]["block"]["distance"]["mean"] < told["depth"]["max"]


def test_looks_change_what_is_seen_and_nothing_else() -> None:
    plain = Config(count=1, looks=Amounts(0, 0, 0, 0, 0))
    with Studio(plain) as still, Studio(Config(count=1)) as varied:
        first, second = next(still.frames()), next(varied.frames())
        assert np.array_equal(still.data.qpos, varied.data.qpos)
    assert not np.array_equal(first.picture.rgb, second.picture.rgb)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"count": 0}, "count"), ({"formats": ("yolo",)}, "formats"), ({"objects": ("moon",)}, "objects"),
     ({"height": 0}, "height")],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Studio(Config(**change))
    assert named in (caught.value.param or "")


def test_an_unknown_camera_is_named() -> None:
    with pytest.raises(NotFound, match="there are: above"):
        camera_id(mujoco.MjModel.from_xml_string(SCENE), "below")


def test_run_lengths_begin_with_zeros_and_go_down_the_columns() -> None:
    assert run_lengths(np.array([[1, 0], [1, 1]])) == [0, 2, 1, 1]
    assert run_lengths(np.array([[0, 0], [1, 0]])) == [1, 1, 2]
