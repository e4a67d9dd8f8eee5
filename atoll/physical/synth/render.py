"""Pictures of simulations without what wastes time on a CPU: no shadow map, no multisampling, no reflections.

One pass gives colour and depth, a second which geom is seen at each pixel. Where there is no OpenGL, rays are cast
instead: depth and geoms are as exact, colours are flat. `Renderer.engine` says which of the two it was, and on what.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import mujoco
import numpy as np

from atoll.core.errors import InvalidRequest, NotFound

MAX_SIDE = 4096
BACKGROUND = -1
GEOM = mujoco.mjtObj.mjOBJ_GEOM.value
PLANE = mujoco.mjtGeom.mjGEOM_PLANE.value
NOT_DRAWN = mujoco.mjNGROUP - 1
"""A group of geoms that MuJoCo's default options hide."""
FREE = -1
"""The camera that every scene has: it looks at its middle, from where MuJoCo's viewer begins."""


class Picture(NamedTuple):
    """`rgb` (h, w, 3) uint8, `depth` (h, w) float32 in metres along the optical axis (infinite where nothing is seen),
    `geoms` (h, w) int32, the id of the geom seen, -1 where there is none."""

    rgb: np.ndarray
    depth: np.ndarray
    geoms: np.ndarray


class Camera(NamedTuple):
    """A pinhole camera as OpenCV has it: x to the right, y down, z forward; pixel centres at whole numbers + 0.5.

    `matrix` (3, 3) takes camera coordinates to pixels; `rotation` (3, 3) and `position` (3,) take camera coordinates to
    the world's: world = rotation @ camera + position."""

    matrix: np.ndarray
    rotation: np.ndarray
    position: np.ndarray

    def see(self, points: np.ndarray) -> np.ndarray:
        """World points (n, 3) in camera coordinates, (n, 3), metres."""
        return (points - self.position) @ self.rotation

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) of world points (n, 3); those behind the camera are not a number."""
        return self.pixels(self.see(points))

    def pixels(self, seen: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) of points in camera coordinates (n, 3); those behind the camera are not a number."""
        ahead = np.where(seen[:, 2:] > 1e-6, seen[:, 2:], np.nan)
        return (seen / ahead @ self.matrix.T)[:, :2]


class Renderer(Protocol):
    """Takes pictures of one model, of one size. A context manager: it holds a graphics context, or threads."""

    engine: str
    model: mujoco.MjModel

    def picture(self, data: mujoco.MjData, camera: int, *, geoms: bool = True) -> Picture:
        """What camera `camera` sees of `data`, whose kinematics are current. Without `geoms` the second pass is saved,
        and `Picture.geoms` is empty."""
        ...

    def close(self) -> None: ...


def camera_id(model: mujoco.MjModel, name: str | int) -> int:
    """The id of a camera by name or id; FREE for "" and -1. Raises NotFound."""
    if name == "" or (isinstance(name, int) and FREE <= name < model.ncam):
        return name or FREE if isinstance(name, str) else name
    found = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA.value, name) if isinstance(name, str) else -1
    if found < 0:
        known = ", ".join(model.camera(i).name for i in range(model.ncam)) or "none"
        raise NotFound(f"there is no camera '{name}' in this scene; there are: {known}", param="camera")
    return found


def camera_of(model: mujoco.MjModel, data: mujoco.MjData, camera: int, height: int, width: int) -> Camera:
    """The camera as it stands in `data`, for pictures of that size."""
    angle = model.vis.global_.fovy if camera == FREE else model.cam_fovy[camera]
    focal = 0.5 * height / np.tan(np.deg2rad(angle) / 2)
    matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    if camera == FREE:
        return Camera(matrix, *_free(model))
    rotation = data.cam_xmat[camera].reshape(3, 3) * [1, -1, -1]
    return Camera(matrix, rotation, data.cam_xpos[camera].copy())


def _free(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and position of the free camera, as mjv_defaultFreeCamera places it."""
    view = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, view)
    turn, tilt = np.deg2rad(view.azimuth), np.deg2rad(view.elevation)
    ahead = np.array([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
    right = np.array([np.sin(turn), -np.cos(turn), 0.0])
    return np.column_stack([right, np.cross(ahead, right), ahead]), view.lookat - view.distance * ahead


def open_renderer(model: mujoco.MjModel, height: int, width: int, *, gl: bool = True) -> Renderer:
    """OpenGL where there is one (EGL, then OSMesa), rays elsewhere or with `gl=False`. Raises InvalidRequest."""
    for name, side in (("height", height), ("width", width)):
        if not 1 <= side <= MAX_SIDE:
            raise InvalidRequest(f"'{name}' must be between 1 and {MAX_SIDE} pixels, not {side}", param=name)
    context = _open_gl(height, width) if gl else None
    return Raster(model, height, width, context) if context else Rays(model, height, width)


def _open_gl(height: int, width: int) -> mujoco.GLContext | None:
    for platform in ("egl", "osmesa"):
        with contextlib.suppress(ImportError, RuntimeError, AttributeError, OSError):
            module = __import__(f"mujoco.{platform}", fromlist=["GLContext"])
            return module.GLContext(width, height)
    return None


class _Closing:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class Raster(_Closing):
    """OpenGL. `context` becomes its own."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int, context: mujoco.GLContext):
        self.model, self.height, self.width, self._gl = model, height, width, context
        context.make_current()
        quality, glob = model.vis.quality, model.vis.global_
        kept = quality.shadowsize, quality.offsamples, glob.offheight, glob.offwidth
        quality.shadowsize, quality.offsamples, glob.offheight, glob.offwidth = 0, 0, height, width
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        quality.shadowsize, quality.offsamples, glob.offheight, glob.offwidth = kept
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene, self._option = mujoco.MjvScene(model, maxgeom=max(1000, 2 * model.ngeom)), mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._fixed, self._free = mujoco.MjvCamera(), mujoco.MjvCamera()
        self._fixed.type = mujoco.mjtCamera.mjCAMERA_FIXED
        mujoco.mjv_defaultFreeCamera(model, self._free)
        self.engine = _gl_renderer()

    def picture(self, data: mujoco.MjData, camera: int, *, geoms: bool = True) -> Picture:
        self._gl.make_current()
        self._arrange(data, camera)
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        depth = np.empty((self.height, self.width), np.float32)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(rgb, depth, self._rect, self._context)
        seen = self._geoms() if geoms else np.empty((0, 0), np.int32)
        return Picture(rgb[::-1], self._metres(depth)[::-1], seen)

    def close(self) -> None:
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def _arrange(self, data: mujoco.MjData, camera: int) -> None:
        """Fill the scene with what the camera can see. MuJoCo draws everything, in view or not."""
        self._fixed.fixedcamid = camera
        view = self._free if camera == FREE else self._fixed
        scene = (self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene)
        mujoco.mjv_updateScene(self.model, data, *scene)
        away = out_of_view(self.model, data, mujoco.mjv_averageCamera(*self._scene.camera), self.width / self.height)
        if away.any():
            groups = self.model.geom_group.copy()
            self.model.geom_group[away] = NOT_DRAWN
            mujoco.mjv_updateScene(self.model, data, *scene)
            self.model.geom_group[:] = groups

    def _geoms(self) -> np.ndarray:
        flags = mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR
        for flag in flags:
            self._scene.flags[flag] = 1
        mujoco.mjr_render(self._rect, self._scene, self._context)
        for flag in flags:
            self._scene.flags[flag] = 0
        colours = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(colours, None, self._rect, self._context)
        red, green, blue = (colours[::-1, :, i].astype(np.int32) for i in range(3))
        ids = np.full(self._scene.ngeom + 1, BACKGROUND, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == GEOM:
                ids[geom.segid + 1] = geom.objid
        return ids.take(red + (green << 8) + (blue << 16))

    def _metres(self, depth: np.ndarray) -> np.ndarray:
        """Depth buffer, reversed (0 is far), to metres: the inverse of OpenGL's perspective matrix."""
        extent, planes = self.model.stat.extent, self.model.vis.map
        near, far = planes.znear * extent, planes.zfar * extent
        value = near * far / (near + depth.astype(np.float64) * (far - near))
        return np.where(depth > 0, value, np.inf).astype(np.float32)


def out_of_view(model: mujoco.MjModel, data: mujoco.MjData, camera: mujoco.MjvGLCamera, aspect: float) -> np.ndarray:
    """(ngeom,) bool: whose bounding box lies beyond a plane of the camera's frustum (Gribb and Hartmann, 2001)."""
    half = camera.frustum_width or (camera.frustum_top - camera.frustum_bottom) * aspect / 2
    right, left = camera.frustum_center + half, camera.frustum_center - half
    top, bottom, near = camera.frustum_top, camera.frustum_bottom, camera.frustum_near
    out = np.array([[near, 0, -right], [-near, 0, left], [0, near, -top], [0, -near, bottom], [0, 0, -near]])
    axes = np.array([camera.up, camera.up, camera.forward], float)
    mujoco.mju_cross(axes[0], axes[2], axes[1])
    planes = out @ axes / np.linalg.norm(out, axis=1, keepdims=True)
    turn, box = data.geom_xmat.reshape(-1, 3, 3), model.geom_aabb
    centre = data.geom_xpos - camera.pos + np.einsum("nij,nj->ni", turn, box[:, :3])
    reach = np.einsum("npj,nj->np", np.abs(planes @ turn), box[:, 3:])
    beyond = (centre @ planes.T > reach).any(axis=1)
    return beyond & (model.geom_type != PLANE) & (not camera.orthographic)


class Rays(_Closing):
    """One ray a pixel (`mj_multiRay`), of what is drawn: visible geoms of the groups that MuJoCo draws by default."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        self.model, self.height, self.width = model, height, width
        self.engine = "ray casting, no OpenGL"
        self._groups = np.array([1, 1, 1, 0, 0, 0], np.uint8)

    def picture(self, data: mujoco.MjData, camera: int, *, geoms: bool = True) -> Picture:
        view = camera_of(self.model, data, camera, self.height, self.width)
        column, row = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        pixels = np.stack([column, row, np.ones_like(row)], axis=-1).reshape(-1, 3)
        ahead = pixels @ np.linalg.inv(view.matrix).T
        rays = ahead @ view.rotation.T
        count = len(rays)
        seen, distance, normal = np.full(count, -1, np.int32), np.full(count, -1.0), np.zeros(count * 3)
        far = mujoco.mjMAXVAL
        args = (view.position, rays.ravel(), self._groups, True, -1, seen, distance, normal, count, far)
        mujoco.mj_multiRay(self.model, data, *args)
        depth = np.where(distance >= 0, distance, np.inf)
        rgb = self._colours(seen, normal.reshape(-1, 3), rays)
        shape = (self.height, self.width)
        return Picture(rgb.reshape(*shape, 3), depth.reshape(shape).astype(np.float32), seen.reshape(shape))

    def close(self) -> None:
        pass

    def _colours(self, seen: np.ndarray, normal: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """The geom's colour, darker the more its surface turns away from the camera."""
        model = self.model
        own = model.geom_rgba[:, :3]
        painted = model.geom_matid >= 0
        colours = np.where(painted[:, None], model.mat_rgba[model.geom_matid, :3] if model.nmat else own, own)
        facing = np.abs((normal * rays).sum(axis=1)) / np.linalg.norm(rays, axis=1)
        lit = colours[seen] * (0.35 + 0.65 * facing[:, None])
        return (np.where(seen[:, None] >= 0, lit, 0) * 255).astype(np.uint8)


def _gl_renderer() -> str:
    from OpenGL import GL

    return f"OpenGL, {GL.glGetString(GL.GL_RENDERER).decode()}"
