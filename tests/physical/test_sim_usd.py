"""OpenUSD: accepted by the validators that usdchecker runs, and the same scene as MuJoCo's."""

from __future__ import annotations

import json
from pathlib import Path

import mujoco
import numpy as np
import pytest
from click.testing import CliRunner
from pxr import Usd, UsdGeom, UsdPhysics, UsdValidation

from atoll.cli import main
from atoll.core.errors import InvalidRequest
from atoll.physical.sim import TASKS, load_task
from atoll.physical.sim.model import compile_model
from atoll.physical.sim.usd import build, export

BOTH = """<mujoco><worldbody><body name="cup"><geom size=".1"/>
<joint name="a" axis="1 0 0"/><joint axis="{axis}" pos="{pos}"/>
</body></worldbody></mujoco>"""
EVERYTHING = """<mujoco>
<asset><hfield name="hill" nrow="3" ncol="4" size="1 1 .5 .1" elevation="0 0 0 0 0 1 1 0 0 0 0 0"/>
<mesh name="wedge" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset>
<worldbody><geom type="hfield" hfield="hill"/>
<body name="arm/1" pos="1 0 1" euler="10 20 30"><joint type="ball"/><geom type="mesh" mesh="wedge"/>
  <body name="tip" pos="0 0 1"><geom type="ellipsoid" size=".1 .2 .3"/><camera name="eye" fovy="90"/></body>
  <body name="nail" pos="0 1 0"><joint type="slide" axis="0 1 1" range="-.2 .3"/>
    <geom size=".1" rgba="1 0 0 .5"/></body>
</body>
<body name="lid" mocap="true" pos="0 0 3"><geom type="capsule" size=".1 .2"/></body></worldbody></mujoco>"""


def checked(stage: Usd.Stage) -> list[str]:
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 20
    return [error.GetErrorAsString() for error in UsdValidation.ValidationContext(validators).Validate(stage)]


def model_of(mjcf: str) -> mujoco.MjModel:
    return compile_model(mujoco.MjSpec.from_string(mjcf), "test")


def same_poses(stage: Usd.Stage, model: mujoco.MjModel) -> None:
    """Bodies and geoms by name or order, in the world."""
    data, cache = mujoco.MjData(model), UsdGeom.XformCache()
    mujoco.mj_kinematics(model, data)
    bodies = [p for p in stage.GetDefaultPrim().GetChildren() if p.IsA(UsdGeom.Xform)]
    assert len(bodies) == model.nbody
    for i, body in enumerate(bodies):
        _same(cache, body, data.xpos[i], data.xmat[i])
        geoms = [p for p in body.GetChildren() if p.IsA(UsdGeom.Gprim)]
        assert len(geoms) == model.body_geomnum[i]
        for k, geom in enumerate(geoms, int(model.body_geomadr[i])):
            _same(cache, geom, data.geom_xpos[k], data.geom_xmat[k])


def _same(cache: UsdGeom.XformCache, prim: Usd.Prim, place: np.ndarray, turn: np.ndarray) -> None:
    found = cache.GetLocalToWorldTransform(prim)
    assert np.allclose(found.ExtractTranslation(), place, atol=1e-5)
    assert np.allclose(np.array(found.GetOrthonormalized())[:3, :3].T.ravel(), turn, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_accepted_and_stands_where_mujoco_has_it(name: str, tmp_path: Path) -> None:
    task, path = load_task(name), tmp_path / "scene.usda"
    export(task, path)
    stage, model = Usd.Stage.Open(str(path)), compile_model(task.model(), name)
    assert checked(stage) == []
    same_poses(stage, model)
    assert (UsdGeom.GetStageMetersPerUnit(stage), UsdGeom.GetStageUpAxis(stage)) == (1.0, "Z")


def test_the_command_writes_the_scene_of_a_task_or_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "hills.xml").write_text(EVERYTHING)
    sources = {"pick-place": ("--task", "pick-place"), "hills": ("--model", str(tmp_path / "hills.xml"))}
    for name, source in sources.items():
        for suffix in ("usda", "usdc"):
            path = tmp_path / f"{name}.{suffix}"
            done = CliRunner().invoke(main, ["sim", *source, "--usd", str(path), "--json"])
            assert json.loads(done.output) == {"scene": name, "usd": str(path)}
            stage = Usd.Stage.Open(str(path))
            assert checked(stage) == [] and stage.GetDefaultPrim().GetDisplayName() == name


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [((), "a.usda", "needs either --task or --model"), (("--task", "reach"), "a.obj", "must end with one of .usda"),
     (("--task", "reach"), "nowhere/../../a.usda", "cannot be written"), (("--task", "fly"), "a.usda", "fly")],
)  # fmt: skip
def test_what_cannot_be_exported_is_told(source: tuple[str, ...], name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "nowhere").write_text("a file is no folder")
    done = CliRunner().invoke(main, ["sim", *source, "--usd", str(tmp_path / name)])
    assert done.exit_code == 1 and said in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["nowhere"]


@pytest.mark.parametrize(("name", "rigid", "joints"), [("go1-velocity", 13, 12), ("ant", 13, 12), ("hopper", 4, 4)])
def test_bodies_and_joints_are_counted_and_joints_agree_with_the_poses(name: str, rigid: int, joints: int) -> None:
    model = compile_model(load_task(name).model(), name)
    stage, cache = build(model, name), UsdGeom.XformCache()
    prims = list(stage.Traverse())
    bodies = [p for p in prims if p.HasAPI(UsdPhysics.RigidBodyAPI)]
    ties = [UsdPhysics.Joint(p) for p in prims if p.IsA(UsdPhysics.Joint)]
    assert (len(bodies), len(ties)) == (rigid, joints)
    mass = sum(UsdPhysics.MassAPI(p).GetMassAttr().Get() for p in bodies)
    assert np.isclose(mass, model.body_mass.sum(), rtol=1e-5)
    for tie in ties:
        ends = []
        for side, pos in ((tie.GetBody0Rel(), tie.GetLocalPos0Attr()), (tie.GetBody1Rel(), tie.GetLocalPos1Attr())):
            targets, at = side.GetTargets(), pos.Get()
            prim = stage.GetPrimAtPath(targets[0]) if targets else None
            ends.append(cache.GetLocalToWorldTransform(prim).Transform(at) if prim else at)
        assert np.allclose(*ends, atol=1e-5)


def test_limits_axes_and_shapes_of_all_kinds() -> None:
    model = model_of(EVERYTHING)
    stage = build(model, "everything")
    assert checked(stage) == []
    same_poses(stage, model)
    assert stage.GetPrimAtPath("/World/arm_1").GetDisplayName() == "arm/1"
    joints = {p.GetTypeName() for p in stage.Traverse() if p.IsA(UsdPhysics.Joint)}
    assert joints == {"PhysicsSphericalJoint", "PhysicsFixedJoint", "PhysicsPrismaticJoint"}
    slide = next(UsdPhysics.PrismaticJoint(p) for p in stage.Traverse() if p.IsA(UsdPhysics.PrismaticJoint))
    assert np.allclose((slide.GetLowerLimitAttr().Get(), slide.GetUpperLimitAttr().Get()), (-0.2, 0.3))
    camera = UsdGeom.Camera(stage.GetPrimAtPath("/World/tip/eye")).GetCamera(Usd.TimeCode.Default())
    assert np.isclose(camera.GetFieldOfView(camera.FOVVertical), 90)
    assert UsdPhysics.RigidBodyAPI(stage.GetPrimAtPath("/World/lid")).GetKinematicEnabledAttr().Get()


@pytest.mark.parametrize(("axis", "pos", "said"), [("1 1 0", "0 0 0", "right angles"), ("0 1 0", "0 0 1", "one place")])
def test_joints_that_usd_has_no_word_for_are_refused_by_name(axis: str, pos: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"body 'cup' .*{said}"):
        build(model_of(BOTH.format(axis=axis, pos=pos)), "cup")
