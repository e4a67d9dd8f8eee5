"""What steps the simulations: C MuJoCo on the cores of this machine (`warp.py` has the same on a GPU)."""

from __future__ import annotations

from typing import Protocol

import mujoco
import mujoco.batch
import numpy as np

from atoll.core.errors import SimulationFailed
from atoll.physical.sim.model import has_contact_forces, stop_timers

BAD = slice(mujoco.mjtWarning.mjWARN_BADQPOS.value, mujoco.mjtWarning.mjWARN_BADCTRL.value + 1)
CONSTANTS_FROM = frozenset(mujoco.MjModel._setconst_inputs)
CONTACT_FORCES = ("cacc", "cfrc_int", "cfrc_ext")


class Physics(Protocol):
    """n simulations of one model. Fields are named as in MjData or MjModel, and have n rows."""

    model: mujoco.MjModel
    n: int

    def field(self, name: str) -> np.ndarray:
        """Live values, (n, ...). A state (qpos, qvel, ctrl, ...) or a model field (body_mass, ...) may be written."""
        ...

    def step(self, nstep: int) -> None: ...

    def reset(self, ids: np.ndarray) -> None:
        """Back to the model's defaults, without computing what follows from them."""
        ...

    def forward(self, ids: np.ndarray) -> None:
        """Compute what follows from the model's fields and the state."""
        ...

    def failed(self) -> dict[int, str]:
        """The simulations that broke in the last step, and why. MuJoCo has reset those whose numbers went bad."""
        ...

    def state(self) -> dict[str, np.ndarray]: ...

    def restore(self, state: dict[str, np.ndarray]) -> None: ...


class Cores:
    """`mujoco.batch` on `threads` threads (0: all cores). Bit-identical at any number of threads."""

    def __init__(self, model: mujoco.MjModel, n: int, threads: int = 0):
        stop_timers()
        self.model, self.n = model, n
        self.batch = mujoco.batch.Batch(model, n, threads)
        self._fresh = self.batch.state[0].copy()
        self._fields: dict[str, np.ndarray] = {}
        self._unknown = [self._writable(name) for name in CONTACT_FORCES] if has_contact_forces(model) else []
        self._bad = self.batch.warning[:, BAD, 1]
        self._raised: dict[int, str] = {}

    def field(self, name: str) -> np.ndarray:
        if name not in self._fields:
            data = name in mujoco.batch.DATA_FIELDS
            self._fields[name] = self.batch.bind(name) if data else self.batch.expand(name)
        return self._fields[name]

    def step(self, nstep: int) -> None:
        try:
            self.batch.step(nstep=nstep)
        except mujoco.batch.SimulationError as error:
            self._raised = {int(i): self.batch.error(int(i)) for i in error.ids}

    def reset(self, ids: np.ndarray) -> None:
        if self._fields.keys() <= mujoco.batch.DATA_FIELDS:
            self.batch.state[ids] = self._fresh  # the same for all: no call that would wake the threads
        else:
            self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)

    def forward(self, ids: np.ndarray) -> None:
        try:
            if self._varies():
                self.batch.set_const(ids)
            self.batch.forward(ids)
        except mujoco.batch.SimulationError as error:
            raise SimulationFailed(str(error), param="model") from None
        for forces in self._unknown:
            forces[ids] = 0

    def failed(self) -> dict[int, str]:
        why, self._raised = self._raised, {}
        if self._bad.any():
            for i, kind in np.argwhere(self._bad).tolist():
                kind += BAD.start
                why.setdefault(i, mujoco.mju_warningText(kind, int(self.batch.warning[i, kind, 0])))
            self._bad[:] = 0  # MuJoCo begins to count anew when it resets what broke
        return why

    def state(self) -> dict[str, np.ndarray]:
        """The state rows; derived fields, which are a substep behind them; and model fields that differ by row."""
        return {"rows": self.batch.state.copy(), **{name: value.copy() for name, value in self._fields.items()}}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for name, value in state.items():
            if name == "rows":
                self.batch.state[:] = value
            else:
                self._writable(name)[...] = value
        if self._varies():
            self.batch.set_const()

    def _varies(self) -> bool:
        """Whether constants of the model have to be computed by simulation."""
        return any(name in CONSTANTS_FROM or name.startswith("opt.") for name in self._fields)

    def _writable(self, name: str) -> np.ndarray:
        """A view of the field that may be written, derived or not; `field` gives those that are derived read-only."""
        own = self.field(name)
        before, own.flags.writeable = own.flags.writeable, True
        view = own[:]
        own.flags.writeable = before
        return view
