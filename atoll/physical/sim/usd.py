"""OpenUSD out: the scene of a task as a stage that usdchecker accepts, with its physics (UsdPhysics).

Bodies are siblings under /World, at their poses in the model's default state: UsdPhysics ties rigid bodies by joints,
it does not nest them. Written are masses, inertias, colliders, joints with their limits, cameras, colours and gravity;
not written are actuators, tendons, sensors, friction, textures and lights.

Needs the extra `usd` (usd-core).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from atoll.core.errors import InvalidRequest, NotInstalled
from atoll.physical.sim.model import compile_model
from atoll.physical.sim.task import Task

if TYPE_CHECKING:
    from pxr import Usd

try:
    from pxr import Gf, Kind, Sdf, Tf, Usd, UsdGeom, UsdPhysics, Vt
except ModuleNotFoundError:
    raise NotInstalled("'usd-core' is not installed; run: pip install 'atoll[usd]'") from None

SUFFIXES = (".usda", ".usdc", ".usd")
WIDE = 100.0
"""Half of the size of a plane that has no end, m."""
AXES = ("X", "Y", "Z")
JOINTS = mujoco.mjtJoint
GEOMS = mujoco.mjtGeom


def export(task: Task, path: Path) -> None:
    """Write the task's scene to `path` whole or not at all. Raises InvalidRequest for what UsdPhysics has no word for,
    and for a path that cannot be written or that is of no such file."""
    if path.suffix not in SUFFIXES:
        raise InvalidRequest(f"'{path.name}' must end with one of {', '.join(SUFFIXES)}", param="usd")
    stage, part = build(compile_model(task.model(), task.name), task.name), path.with_name(f".part-{path.name}")
    try:
        whole = stage.GetRootLayer().Export(str(part))
        if whole:
            part.replace(path)
    except (Tf.ErrorException, OSError):
        whole = False
    if not whole:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InvalidRequest(f"'{path}' cannot be written", param="usd")


def build(model: mujoco.MjModel, name: str) -> Usd.Stage:
    """The stage, in memory."""
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageMetersPerUnit(stage, UsdGeom.LinearUnits.meters)
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdPhysics.SetStageKilogramsPerUnit(stage, 1.0)
    world = UsdGeom.Xform.Define(stage, "/World")
    world.GetPrim().SetDisplayName(name)
    Usd.ModelAPI(world).SetKind(Kind.Tokens.assembly)
    stage.SetDefaultPrim(world.GetPrim())
    _gravity(stage, model)
    _Writer(stage, model).write()
    return stage


def _gravity(stage: Usd.Stage, model: mujoco.MjModel) -> None:
    scene, pull = UsdPhysics.Scene.Define(stage, "/World/PhysicsScene"), model.opt.gravity
    size = float(np.linalg.norm(pull))
    scene.CreateGravityMagnitudeAttr(size)
    scene.CreateGravityDirectionAttr(_vector(pull / size if size else -np.eye(3)[2]))


class _Writer:
    """Writes one model. `paths` are those of the bodies; `poses` their poses in the default state."""

    def __init__(self, stage: Usd.Stage, model: mujoco.MjModel):
        self.stage, self.model, self.data = stage, model, mujoco.MjData(model)
        mujoco.mj_kinematics(model, self.data)
        self.used: set[Sdf.Path] = set()
        self.paths: list[Sdf.Path] = []
        self.mocap = model.body_mocapid >= 0
        self.moves = (model.body_weldid != 0) & ~self.mocap

    def write(self) -> None:
        model = self.model
        for i in range(model.nbody):
            self._body(i)
        for i in range(model.ngeom):
            self._geom(i)
        for i in range(model.ncam):
            self._camera(i)
        for i in np.flatnonzero(self.moves).tolist():
            self._joint(i)

    def _path(self, parent: str | Sdf.Path, name: str, otherwise: str) -> Sdf.Path:
        """A path for `name` that is not in use."""
        valid = Tf.MakeValidIdentifier(name or otherwise)
        path, k = Sdf.Path(parent).AppendChild(valid), 1
        while path in self.used or path == Sdf.Path("/World/PhysicsScene"):
            path, k = Sdf.Path(parent).AppendChild(f"{valid}_{k}"), k + 1
        self.used.add(path)
        return path

    def _body(self, i: int) -> None:
        model, body = self.model, self.model.body(i)
        path = Sdf.Path("/World/Ground") if i == 0 else self._path("/World", body.name, f"body_{i}")
        self.used.add(path)
        self.paths.append(path)
        xform = UsdGeom.Xform.Define(self.stage, path)
        _place(xform, self.data.xpos[i], self.data.xquat[i])
        prim = xform.GetPrim()
        if body.name:
            prim.SetDisplayName(body.name)
        if not (self.moves[i] or self.mocap[i]):
            return
        rigid = UsdPhysics.RigidBodyAPI.Apply(prim)
        if self.mocap[i]:
            rigid.CreateKinematicEnabledAttr(True)
        if model.body_mass[i]:
            mass = UsdPhysics.MassAPI.Apply(prim)
            mass.CreateMassAttr(float(model.body_mass[i]))
            mass.CreateCenterOfMassAttr(_vector(model.body_ipos[i]))
            mass.CreateDiagonalInertiaAttr(_vector(model.body_inertia[i]))
            mass.CreatePrincipalAxesAttr(_turn(model.body_iquat[i]))

    def _geom(self, i: int) -> None:
        model, geom = self.model, self.model.geom(i)
        body = self.paths[model.geom_bodyid[i]]
        shape, scale = self._shape(i, self._path(body, geom.name, f"geom_{i}"))
        _place(shape, model.geom_pos[i], model.geom_quat[i], scale)
        rgba = model.mat_rgba[model.geom_matid[i]] if model.geom_matid[i] >= 0 else model.geom_rgba[i]
        shape.CreateDisplayColorAttr([_vector(rgba[:3])])
        shape.CreateDisplayOpacityAttr([float(rgba[3])])
        extent = UsdGeom.Boundable.ComputeExtentFromPlugins(shape, Usd.TimeCode.Default())
        shape.CreateExtentAttr(extent)
        if model.geom_contype[i] or model.geom_conaffinity[i]:
            UsdPhysics.CollisionAPI.Apply(shape.GetPrim())
            if shape.GetPrim().IsA(UsdGeom.Mesh):
                hull = UsdPhysics.MeshCollisionAPI.Apply(shape.GetPrim())
                field = model.geom_type[i] == GEOMS.mjGEOM_HFIELD
                hull.CreateApproximationAttr(UsdPhysics.Tokens.none if field else UsdPhysics.Tokens.convexHull)

    def _shape(self, i: int, path: Sdf.Path) -> tuple[Any, np.ndarray | None]:
        """The prim of a geom, and its scale."""
        stage, kind, size = self.stage, GEOMS(self.model.geom_type[i]), self.model.geom_size[i].tolist()
        match kind:
            case GEOMS.mjGEOM_PLANE:
                plane = UsdGeom.Plane.Define(stage, path)
                plane.CreateWidthAttr(2 * (size[0] or WIDE))
                plane.CreateLengthAttr(2 * (size[1] or WIDE))
                plane.CreateAxisAttr(UsdGeom.Tokens.z)
                return plane, None
            case GEOMS.mjGEOM_SPHERE:
                sphere = UsdGeom.Sphere.Define(stage, path)
                sphere.CreateRadiusAttr(size[0])
                return sphere, None
            case GEOMS.mjGEOM_CAPSULE | GEOMS.mjGEOM_CYLINDER:
                kind = UsdGeom.Capsule if kind == GEOMS.mjGEOM_CAPSULE else UsdGeom.Cylinder
                tube = kind.Define(stage, path)
                tube.CreateRadiusAttr(size[0])
                tube.CreateHeightAttr(2 * size[1])
                tube.CreateAxisAttr(UsdGeom.Tokens.z)
                return tube, None
            case GEOMS.mjGEOM_BOX:
                box = UsdGeom.Cube.Define(stage, path)
                box.CreateSizeAttr(2.0)
                return box, self.model.geom_size[i]
        mesh = UsdGeom.Mesh.Define(stage, path)
        points, faces = self._surface(i, kind)
        mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(points, np.float32)))
        mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(np.ascontiguousarray(faces, np.int32).ravel()))
        mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(faces), 3, np.int32)))
        mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        return mesh, None

    def _surface(self, i: int, kind: mujoco.mjtGeom) -> tuple[np.ndarray, np.ndarray]:
        """Points (p, 3) and triangles (f, 3) of a mesh, an ellipsoid or a height field."""
        model, which = self.model, self.model.geom_dataid[i]
        if kind == GEOMS.mjGEOM_ELLIPSOID:
            u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 33), np.linspace(0, np.pi, 17))
            points = np.stack((np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v)), axis=-1)
            return points.reshape(-1, 3) * model.geom_size[i], _grid(17, 33)
        if kind == GEOMS.mjGEOM_HFIELD:
            rows, columns = model.hfield_nrow[which], model.hfield_ncol[which]
            x, y, top, _ = model.hfield_size[which]
            at = model.hfield_adr[which]
            height = top * model.hfield_data[at : at + rows * columns]
            xs, ys = np.meshgrid(np.linspace(-x, x, columns), np.linspace(-y, y, rows))
            return np.stack((xs.ravel(), ys.ravel(), height), axis=1), _grid(rows, columns)
        points, faces = model.mesh_vertadr[which], model.mesh_faceadr[which]
        return (
            model.mesh_vert[points : points + model.mesh_vertnum[which]],
            model.mesh_face[faces : faces + model.mesh_facenum[which]],
        )

    def _camera(self, i: int) -> None:
        model = self.model
        camera = UsdGeom.Camera.Define(
            self.stage, self._path(self.paths[model.cam_bodyid[i]], model.camera(i).name, f"camera_{i}")
        )
        _place(camera, model.cam_pos[i], model.cam_quat[i])
        tall = 24.0
        camera.CreateVerticalApertureAttr(tall)
        camera.CreateFocalLengthAttr(tall / 2 / float(np.tan(np.radians(model.cam_fovy[i]) / 2)))

    def _joint(self, i: int) -> None:
        """What ties body `i` to its parent: nothing where it is free, else one joint with all its freedom."""
        model = self.model
        ids = range(model.body_jntadr[i], model.body_jntadr[i] + model.body_jntnum[i])
        kinds = [JOINTS(model.jnt_type[j]) for j in ids]
        if JOINTS.mjJNT_FREE in kinds:
            return
        path = self._path("/World", model.joint(ids[0]).name if ids else "", f"{self.paths[i].name}_joint")
        if path.name == self.paths[i].name:
            path = self._path("/World", f"{path.name}_joint", "")
        frame = np.array([1.0, 0, 0, 0])
        if not ids:
            joint = UsdPhysics.FixedJoint.Define(self.stage, path)
        elif kinds == [JOINTS.mjJNT_BALL]:
            joint = self._ball(path, ids[0])
        elif len(ids) == 1:
            joint = self._single(path, ids[0])
            frame = _frame([model.jnt_axis[ids[0]]])
        else:
            frame = self._common_frame(i, ids)
            joint = self._several(path, ids)
        self._tie(joint, i, self._anchor(ids), frame)

    def _ball(self, path: Sdf.Path, j: int) -> Any:
        joint = UsdPhysics.SphericalJoint.Define(self.stage, path)
        if self.model.jnt_limited[j]:
            cone = float(np.degrees(self.model.jnt_range[j, 1]))
            joint.CreateConeAngle0LimitAttr(cone)
            joint.CreateConeAngle1LimitAttr(cone)
        return joint

    def _single(self, path: Sdf.Path, j: int) -> Any:
        hinge = self.model.jnt_type[j] == JOINTS.mjJNT_HINGE
        joint = (UsdPhysics.RevoluteJoint if hinge else UsdPhysics.PrismaticJoint).Define(self.stage, path)
        joint.CreateAxisAttr(UsdPhysics.Tokens.x)
        if (limits := self._limits(j)) is not None:
            joint.CreateLowerLimitAttr(limits[0])
            joint.CreateUpperLimitAttr(limits[1])
        return joint

    def _several(self, path: Sdf.Path, ids: range) -> Any:
        """A joint that locks all that is not among `ids`."""
        joint, free = UsdPhysics.Joint.Define(self.stage, path), {}
        axes: list[np.ndarray] = []
        for j in ids:
            axis = self.model.jnt_axis[j]
            at = next((k for k, known in enumerate(axes) if abs(known @ axis) > 0.999), len(axes))
            if at == len(axes):
                axes.append(axis)
            kind = "rot" if self.model.jnt_type[j] == JOINTS.mjJNT_HINGE else "trans"
            limits = self._limits(j)
            free[kind + AXES[at]] = limits if limits is None or axes[at] @ axis > 0 else (-limits[1], -limits[0])
        for name in (kind + axis for kind in ("trans", "rot") for axis in AXES):
            limits = free.get(name, (1.0, -1.0))  # lower above upper: locked
            if limits is not None:
                limit = UsdPhysics.LimitAPI.Apply(joint.GetPrim(), name)
                limit.CreateLowAttr(limits[0])
                limit.CreateHighAttr(limits[1])
        return joint

    def _common_frame(self, i: int, ids: range) -> np.ndarray:
        model, name = self.model, self.model.body(i).name
        axes: list[np.ndarray] = []
        for j in ids:
            if model.jnt_type[j] == JOINTS.mjJNT_BALL:
                raise InvalidRequest(f"body '{name}' has a ball joint and another one", param="model")
            axis = model.jnt_axis[j]
            if all(abs(axis @ known) < 0.999 for known in axes):
                axes.append(axis)
        if any(abs(a @ b) > 1e-6 for k, a in enumerate(axes) for b in axes[:k]):
            raise InvalidRequest(f"the joints of body '{name}' have axes that are not at right angles", param="model")
        return _frame(axes)

    def _anchor(self, ids: range) -> np.ndarray:
        """Where the hinges among the joints are; it does not matter where slides are."""
        model = self.model
        turning = [j for j in ids if model.jnt_type[j] != JOINTS.mjJNT_SLIDE] or list(ids)
        places = [model.jnt_pos[j] for j in turning] or [np.zeros(3)]
        if not np.allclose(places, places[0]):
            name = model.body(model.jnt_bodyid[ids[0]]).name
            raise InvalidRequest(f"the hinges of body '{name}' are not at one place", param="model")
        return places[0]

    def _limits(self, j: int) -> tuple[float, float] | None:
        """From the default pose: degrees or metres."""
        model = self.model
        if not model.jnt_limited[j]:
            return None
        low, high = model.jnt_range[j] - model.qpos0[model.jnt_qposadr[j]]
        if model.jnt_type[j] == JOINTS.mjJNT_HINGE:
            low, high = np.degrees((low, high))
        return float(low), float(high)

    def _tie(self, joint: Any, i: int, pos: np.ndarray, frame: np.ndarray) -> None:
        """Put the joint's frame, `pos` and `frame` in body `i`, into both bodies."""
        data, parent = self.data, self.model.body_parentid[i]
        joint.CreateBody1Rel().SetTargets([self.paths[i]])
        joint.CreateLocalPos1Attr(_vector(pos))
        joint.CreateLocalRot1Attr(_turn(frame))
        place, turn = np.zeros(3), np.zeros(4)
        mujoco.mju_mulPose(place, turn, data.xpos[i], data.xquat[i], pos, frame)
        if self.moves[parent] or self.mocap[parent]:
            joint.CreateBody0Rel().SetTargets([self.paths[parent]])
            back, spin = np.zeros(3), np.zeros(4)
            mujoco.mju_negPose(back, spin, data.xpos[parent], data.xquat[parent])
            mujoco.mju_mulPose(place, turn, back, spin, place.copy(), turn.copy())
        joint.CreateLocalPos0Attr(_vector(place))
        joint.CreateLocalRot0Attr(_turn(turn))


def _place(xform: Any, pos: np.ndarray, quaternion: np.ndarray, scale: np.ndarray | None = None) -> None:
    xform.AddTranslateOp().Set(Gf.Vec3d(*pos.tolist()))
    w, *xyz = quaternion.tolist()
    xform.AddOrientOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Quatd(w, Gf.Vec3d(*xyz)))
    if scale is not None:
        xform.AddScaleOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Vec3d(*scale.tolist()))


def _frame(axes: list[np.ndarray]) -> np.ndarray:
    """A rotation, (w, x, y, z), that turns X (and Y, Z) to these axes, which are at right angles."""
    first = axes[0] / np.linalg.norm(axes[0])
    second = axes[1] if len(axes) > 1 else np.eye(3)[np.abs(first).argmin()]
    second = second - (second @ first) * first
    second /= np.linalg.norm(second)
    turn = np.zeros(4)
    mujoco.mju_mat2Quat(turn, np.stack((first, second, np.cross(first, second)), axis=1).ravel())
    return turn


def _grid(rows: int, columns: int) -> np.ndarray:
    """Triangles of a grid of points, (f, 3)."""
    at = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]
    return np.concatenate((np.stack((a, b, c), -1).reshape(-1, 3), np.stack((a, c, d), -1).reshape(-1, 3)))


def _vector(value: np.ndarray) -> Any:
    return Gf.Vec3f(*value.tolist())


def _turn(value: np.ndarray) -> Any:
    w, *xyz = value.tolist()
    return Gf.Quatf(w, Gf.Vec3f(*xyz))
