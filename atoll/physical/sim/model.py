"""MuJoCo models from files, with MuJoCo's own words where one is broken."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

import mujoco

from atoll.core.errors import InvalidRequest

POINTER = ctypes.c_void_p
CONTACT_FORCES = "atoll.contact_forces"
NOT_OURS = "compiler attribute 'settotalmass' is deprecated"  # written by the authors of models that we load as is


def read_model(path: Path) -> mujoco.MjSpec:
    """The MJCF or URDF file at `path`. Raises InvalidRequest with MuJoCo's message and line."""
    quieten()
    try:
        return mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise InvalidRequest(f"'{path.name}' is not a model: {_line(error)}", param="model") from None


def compile_model(spec: mujoco.MjSpec, name: str) -> mujoco.MjModel:
    """`spec` compiled. Raises InvalidRequest with MuJoCo's message, and `name` to tell whose model it is."""
    quieten()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOT_OURS)
        try:
            return spec.compile()
        except ValueError as error:
            raise InvalidRequest(f"the model of '{name}' does not compile: {_line(error)}", param="model") from None


def quieten() -> None:
    """MuJoCo writes no MUJOCO_LOG.TXT into the current folder, and does not print what `Sim` counts and reports.
    This holds for the whole process, as MuJoCo's own setting does."""
    config = mujoco.MjLogConfig.get()
    if config.logto_file or config.logto_console:
        config.logto_file = config.logto_console = False
        config.set()


@cache
def stop_timers() -> None:
    """MuJoCo does not read the clock before and after each part of a step, for `MjData.timer`, in this process.

    That took a tenth of the CPU time of a small model's step. The Python package installs the clock, and has no call to
    take it away again.
    """
    POINTER.in_dll(_library(), "mjcb_time").value = None


def add_contact_forces(spec: mujoco.MjSpec) -> None:
    """Make each physics step end with mj_rnePostConstraint, which computes `cacc`, `cfrc_int` and `cfrc_ext`.

    MuJoCo computes them only for sensors, which see the first of the four stages of a Runge-Kutta step; Gymnasium calls
    mj_rnePostConstraint after the last. A plugin that is called when a step ends is the one hook at that place.
    """
    _register()
    spec.activate_plugin(CONTACT_FORCES)
    spec.bodies[1].plugin = spec.add_plugin(name=CONTACT_FORCES, plugin_name=CONTACT_FORCES, active=True)


def has_contact_forces(model: mujoco.MjModel) -> bool:
    return CONTACT_FORCES.encode() in model.names.split(b"\0")


def _line(error: ValueError) -> str:
    return " ".join(str(error).split())


class _Plugin(ctypes.Structure):
    """mjpPlugin of mujoco/mjplugin.h, and room for what later versions may append."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("nattribute", ctypes.c_int),
        ("attributes", POINTER),
        ("capabilityflags", ctypes.c_int),
        ("needstage", ctypes.c_int),
        *((name, POINTER) for name in ("nstate", "nsensordata", "init", "destroy", "copy", "reset", "compute")),
        ("advance", POINTER),
        ("rest", POINTER * 32),
    )


@cache
def _library() -> ctypes.CDLL:
    """The library of MuJoCo that is loaded."""
    return ctypes.CDLL(str(next(path for path in Path(mujoco.__file__).parent.glob("*mujoco*") if path.is_file())))


@cache
def _register() -> tuple[object, ...]:
    """Make the plugin known to MuJoCo, once in a process; returns what has to live as long as that.

    Its functions are MuJoCo's own: C leaves arguments that a function does not take where they are, so `advance(m, d,
    instance)` may be mj_rnePostConstraint(m, d), and mj_version() is a function that does nothing.
    """
    library = _library()
    zero = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    plugin = _Plugin()
    library.mjp_defaultPlugin(ctypes.byref(plugin))
    plugin.name = CONTACT_FORCES.encode()
    plugin.capabilityflags = mujoco.mjtPluginCapabilityBit.mjPLUGIN_PASSIVE.value
    plugin.nstate = plugin.init = ctypes.cast(zero, POINTER).value
    plugin.reset = plugin.compute = ctypes.cast(library.mj_version, POINTER).value
    plugin.advance = ctypes.cast(library.mj_rnePostConstraint, POINTER).value
    library.mjp_registerPlugin(ctypes.byref(plugin))
    return plugin, zero
