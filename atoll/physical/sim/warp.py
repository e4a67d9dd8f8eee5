"""The same port as `physics.Cores` on an NVIDIA GPU: MuJoCo-Warp, in float32. Tasks run unchanged.

Terms are numpy, so that fields are copied to and from the device: after each step those that something reads, before it
those that something wrote. What the GPU computes is not bit-equal to C MuJoCo, nor from one run to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mujoco
import mujoco_warp
import numpy as np
import warp

from atoll.core.errors import SetupError, Unsupported
from atoll.physical.sim.model import compile_model
from atoll.physical.sim.physics import CONSTANTS_FROM, CONTACT_FORCES
from atoll.physical.sim.task import Task

STATE = (
    "time",
    "qpos",
    "qvel",
    "act",
    "qacc_warmstart",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "mocap_pos",
    "mocap_quat",
)
FOLLOWS = ("body_subtreemass", "body_invweight0", "dof_invweight0", "tendon_invweight0", "actuator_acc0")


def usable() -> bool:
    """Whether there is an NVIDIA GPU that CUDA can use."""
    warp.config.log_level = warp.LOG_WARNING  # it prints on stdout
    return warp.is_cuda_available()


def on_gpu(task: Task, n: int, device: str | None = None) -> Warp:
    """The task's model on the first NVIDIA GPU. For tests only, `device` may be "cpu", which is very slow."""
    if not usable() and device is None:
        raise SetupError("there is no NVIDIA GPU here that CUDA can use; leave the physics on the cores")
    model = compile_model(task.model(), task.name)
    return Warp(model, n, contact_forces=task.contact_forces, device=device or "cuda:0")


class Warp:
    """n simulations on one device of Warp's. `contacts` and `constraints` are what fits by simulation (None: what
    MuJoCo-Warp guesses); a simulation that needs more is counted as broken. Raises Unsupported for models that
    MuJoCo-Warp cannot step, and says why."""

    def __init__(
        self,
        model: mujoco.MjModel,
        n: int,
        *,
        device: str,
        contact_forces: bool = False,
        contacts: int | None = None,
        constraints: int | None = None,
    ):
        self.model, self.n, self.device = model, n, warp.get_device(device)
        try:
            with warp.ScopedDevice(self.device):
                self._model = mujoco_warp.put_model(model)
                self._data = mujoco_warp.make_data(model, nworld=n, nconmax=contacts, njmax=constraints)
        except NotImplementedError as error:
            raise Unsupported(f"MuJoCo-Warp cannot step this model: {error}", param="physics") from None
        self._model.opt.warn_overflow = 0
        self._warm = warp.clone(self._data.qacc_warmstart)
        self._default = mujoco.MjData(model)
        self._forces = CONTACT_FORCES if contact_forces else ()
        self._values: dict[str, np.ndarray] = {}
        self._sent: dict[str, np.ndarray] = {}
        self._why: dict[int, str] = {}
        self._graphs: dict[str, object] = {}
        for name in STATE:
            self._values[name] = np.repeat(self._like(name)[None], n, axis=0)
            self._sent[name] = np.full_like(self._values[name], np.nan)

    def field(self, name: str) -> np.ndarray:
        if name not in self._values:
            if name in mujoco.batch.DATA_FIELDS and hasattr(self._data, name):
                self._values[name] = self._fetched(name)
            else:
                self._values[name] = self._expanded(name)
                self._sent[name] = self._values[name].copy()
        return self._values[name]

    def step(self, nstep: int) -> None:
        self._send(STATE)
        self._run(f"step {nstep}", partial(self._steps, nstep))
        self._receive()
        bad = ~np.isfinite(self._values["qpos"]).all(axis=1) | ~np.isfinite(self._values["qvel"]).all(axis=1)
        full = self._data.overflow.numpy() != 0
        self._why = dict.fromkeys(np.flatnonzero(full).tolist(), "contacts or constraints do not fit")
        self._why |= dict.fromkeys(np.flatnonzero(bad).tolist(), "Nan or Inf in QPOS or QVEL")
        if bad.any():
            for name in self._values.keys() - set(STATE) - self._sent.keys():
                self._values[name][bad] = 0
            self.reset(np.flatnonzero(bad))

    def reset(self, ids: np.ndarray) -> None:
        for name in STATE:
            self._values[name][ids] = self._like(name)

    def forward(self, ids: np.ndarray) -> None:
        self._vary()
        self._send(STATE)
        self._run("forward", self._forward)
        self._data.overflow.zero_()
        self._receive(ids)
        for name in self._forces:
            if name in self._values:
                self._values[name][ids] = 0

    def failed(self) -> dict[int, str]:
        why, self._why = self._why, {}
        return why

    def state(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self._values.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for name, value in state.items():
            self.field(name)[...] = value
        self._vary()

    def _vary(self) -> None:
        """Send the fields of the model that differ between simulations, and compute what follows from them."""
        varied = self._send([name for name in self._sent if name not in STATE])
        if any(name in CONSTANTS_FROM for name in varied):
            with warp.ScopedDevice(self.device):
                mujoco_warp.set_const(self._model, self._data)

    def _forward(self) -> None:
        warp.copy(self._warm, self._data.qacc_warmstart)
        mujoco_warp.forward(self._model, self._data)
        warp.copy(self._data.qacc_warmstart, self._warm)

    def _steps(self, nstep: int) -> None:
        for _ in range(nstep):
            mujoco_warp.step(self._model, self._data)
        if self._forces:
            mujoco_warp.rne_postconstraint(self._model, self._data)

    def _run(self, name: str, work: Callable[[], None]) -> None:
        """Do `work`; on a GPU as one graph, from the second time on."""
        with warp.ScopedDevice(self.device):
            if not self.device.is_cuda or name not in self._graphs:
                work()
                self._graphs[name] = None
                return
            if self._graphs[name] is None:
                with warp.ScopedCapture() as capture:
                    work()
                self._graphs[name] = capture.graph
            warp.capture_launch(self._graphs[name])

    def _send(self, names: list[str] | tuple[str, ...]) -> list[str]:
        """Copy to the device what was written since; returns the names."""
        changed = [name for name in names if not np.array_equal(self._values[name], self._sent[name])]
        for name in changed:
            self._sent[name] = self._values[name].copy()
            _write(self._array(name), self._values[name])
        return changed

    def _receive(self, ids: np.ndarray | slice = slice(None)) -> None:
        """Copy from the device what the step computed, of some simulations."""
        for name, value in self._values.items():
            if name in STATE:
                value[ids] = self._fetched(name)[ids]
                self._sent[name][ids] = value[ids]
            elif name not in self._sent:
                value[ids] = self._fetched(name)[ids]

    def _like(self, name: str) -> np.ndarray:
        return np.asarray(getattr(self._default, name), np.float64)

    def _array(self, name: str) -> warp.array:
        if name in STATE:
            return getattr(self._data, name)
        return getattr(self._model.opt, name[4:]) if name.startswith("opt.") else getattr(self._model, name)

    def _fetched(self, name: str) -> np.ndarray:
        """A field of MjData, (n, ...) in MuJoCo's shape and float64 (or integers)."""
        values = getattr(self._data, name).numpy()
        values = values.astype(np.float64) if values.dtype.kind == "f" else values
        return values.reshape(self.n, *np.shape(getattr(self._default, name)))

    def _expanded(self, name: str) -> np.ndarray:
        """A field of MjModel with a row for each simulation, here and on the device."""
        source = self.model.opt if name.startswith("opt.") else self.model
        own, there = (
            getattr(source, name.removeprefix("opt."), None),
            self._model.opt if source is not self.model else 0,
        )
        if not isinstance(own, np.ndarray) or not hasattr(there or self._model, name.removeprefix("opt.")):
            raise Unsupported(f"'{name}' cannot differ between simulations on a GPU", param="physics")
        for field in (name, *(FOLLOWS if name in CONSTANTS_FROM else ())):
            array = self._array(field)
            if array.shape[0] != self.n:
                rows = np.repeat(array.numpy()[:1], self.n, axis=0)
                rows = warp.array(rows, dtype=array.dtype, device=self.device)
                setattr(self._model.opt if field.startswith("opt.") else self._model, field.removeprefix("opt."), rows)
        self._graphs = {}
        return np.repeat(own[None], self.n, axis=0)


def _write(array: warp.array, values: np.ndarray) -> None:
    values = values.astype(np.float32) if values.dtype.kind == "f" else values
    array.assign(np.ascontiguousarray(values.reshape(*array.shape, *getattr(array.dtype, "_shape_", ()))))
