"""Scenes of one's own: files that are read, files that are refused, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium.utils.env_checker import check_env

from atoll.cli import main
from atoll.core.errors import InvalidRequest
from atoll.physical.sim.load import inspect, load_scene
from atoll.physical.sim.sim import Sim
from atoll.physical.sim.vector import Env

CART = """<mujoco><worldbody><geom type="plane" size="1 1 .1"/>
<body name="cart" pos="0 0 .2"><joint name="x" type="slide" axis="1 0 0" damping="1"/>
<geom size=".1" mass="1"/>{more}</body>
</worldbody><actuator><motor joint="x" ctrlrange="-2 3" ctrllimited="true"/><motor joint="x"/></actuator>
<keyframe><key qpos="0.5" ctrl="1 0"/></keyframe></mujoco>"""
TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
URDF = """<robot name="pendulum"><link name="base"/><link name="rod">
<inertial><mass value="1"/><origin xyz="0 0 -.5"/>
<inertia ixx="{i}" iyy="{i}" izz="{i}" ixy="0" ixz="0" iyz="0"/></inertial>
<collision><origin xyz="0 0 -.5"/><geometry><box size=".1 .1 1"/></geometry></collision></link>
<joint name="pivot" type="continuous"><parent link="base"/><child link="rod"/><axis xyz="0 1 0"/></joint></robot>"""


def written(folder: Path, text: str, name: str = "scene.xml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def meshed(folder: Path, mesh: str, compiler: str = "") -> Path:
    text = f"<mujoco>{compiler}<asset><mesh name='m' file='{mesh}'/></asset>"
    return written(folder, text + "<worldbody><body><joint/><geom type='mesh' mesh='m'/></body></worldbody></mujoco>")


@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
def test_a_scene_is_an_environment_that_begins_at_its_keyframe(tmp_path: Path) -> None:
    task = load_scene(written(tmp_path, CART.format(more="")))
    check_env(Env(task), skip_render_check=True)
    sim = Sim(task, 2)
    assert sim.reset().tolist() == [[0.5, 0.0]] * 2
    assert (sim.action_low.tolist(), sim.action_high.tolist()) == ([-2, -1], [3, 1])
    assert sim.dt == pytest.approx(0.02)


def test_urdf_is_read_and_a_sound_scene_has_no_findings(tmp_path: Path) -> None:
    found = inspect(written(tmp_path, URDF.format(i=0.1), "pendulum.urdf"), seconds=0.5)
    assert (found.joints, found.mass_kg, found.broken) == (1, 1.0, 0)
    assert found.findings == ("it has no actuators: nothing can be done in it",)
    assert inspect(written(tmp_path, CART.format(more="")), seconds=0.5).findings == ()


def test_inertias_in_the_wrong_unit_and_bodies_denser_than_metal_are_told(tmp_path: Path) -> None:
    found = inspect(written(tmp_path, URDF.format(i=100.0), "pendulum.urdf"), seconds=0.1)
    assert "the inertia of 'rod' does not fit its size: its radius of gyration is 10 m" in found.findings[-1]
    heavy = CART.format(more='<body name="bolt" pos="0 0 1"><joint/><geom size=".01" mass="3"/></body>')
    said = inspect(written(tmp_path, heavy), seconds=0.1).findings
    assert any("'bolt' has 3 kg within 0.01 m" in each for each in said)


def test_physics_that_breaks_and_things_that_fall_are_told(tmp_path: Path) -> None:
    stiff = "<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
    assert "falls without end" in inspect(written(tmp_path, stiff), seconds=3.0).findings[0]
    wild = CART.format(more="").replace(
        "<motor joint", '<general gainprm="1e12" biastype="affine" biasprm="0 1e12" joint', 1
    )
    found = inspect(written(tmp_path, wild), seconds=2.0)
    assert found.broken and "the physics broke" in found.findings[0]


def test_meshes_are_found_beside_the_file_and_in_its_folders(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    written(tmp_path / "parts", TETRAHEDRON, "m.obj")
    for path in (meshed(tmp_path, "parts/m.obj"), meshed(tmp_path, "m.obj", "<compiler meshdir='parts'/>")):
        assert Sim(load_scene(path), 1).model.nmesh == 1


@pytest.mark.parametrize(
    ("mesh", "compiler"),
    [("../m.obj", ""), ("{out}/m.obj", ""), ("m.obj", "<compiler meshdir='..'/>"),
     ("../../m.obj", "<compiler assetdir='a'/>"),
     ("link.obj", "")],
)  # fmt: skip
def test_no_file_outside_of_the_folder_is_read(tmp_path: Path, mesh: str, compiler: str) -> None:
    written(tmp_path, TETRAHEDRON, "m.obj")
    folder = tmp_path / "scene"
    (folder / "a").mkdir(parents=True)
    (folder / "link.obj").symlink_to(tmp_path / "m.obj")
    with pytest.raises(InvalidRequest, match=r"'scene\.xml' names a file outside of its folder"):
        load_scene(meshed(folder, mesh.format(out=tmp_path), compiler))


def test_nor_through_files_that_are_included(tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    folder.mkdir()
    written(tmp_path, "<mujoco/>", "secret.xml")
    written(folder, "<mujoco><include file='../secret.xml'/></mujoco>", "more.xml")
    with pytest.raises(InvalidRequest, match=r"outside of its folder: 'secret\.xml'"):
        load_scene(written(folder, "<mujoco><include file='more.xml'/></mujoco>"))


@pytest.mark.parametrize(
    ("text", "said"),
    [("<mujoco><worldbody>\n<bodi/></worldbody></mujoco>", "Element 'bodi', line 2"), ("<mujoco>\n<", "line 2"),
     ("<mujoco><asset><mesh file='none.obj'/></asset></mujoco>", "none.obj")],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        load_scene(written(tmp_path, text))
    with pytest.raises(InvalidRequest, match=r"'none\.xml' cannot be read: No such file"):
        load_scene(tmp_path / "none.xml")


def test_the_command_tells_of_a_scene_and_of_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = written(tmp_path, CART.format(more=""))
    told = CliRunner().invoke(main, ["sim", "--model", str(path)])
    as_json = CliRunner().invoke(main, ["sim", "--model", str(path), "--json"])
    assert json.loads(as_json.output)["actuators"] == 2
    assert told.exit_code == 0 and "Nothing odd was found" in told.output and "8 x 5 s" in told.output
    broken = CliRunner().invoke(main, ["sim", "--model", str(written(tmp_path, "<mujoco><bodi/></mujoco>"))])
    assert broken.exit_code == 1 and "line 1" in broken.output


def test_the_task_drives_what_it_says(tmp_path: Path) -> None:
    sim = Sim(load_scene(written(tmp_path, CART.format(more=""))), 1)
    sim.reset()
    sim.step(np.array([[3.0, 0.0]]))
    assert sim.qvel[0, 0] > 0
