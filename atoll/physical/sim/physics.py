"""What steps the simulations: C MuJoCo on the cores of this machine (`warp.py` has the same on a GPU)."""

from __future__ import annotations

from typing import Protocol

import mujoco
import mujoco.batch
import numpy as np

from atoll.physical.sim.model import has_contact_forces

BAD = [int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{name}")) for name in ("QPOS", "QVEL", "QACC")]
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
        """Compute what follows from the state."""
        ...

    def failed(self) -> np.ndarray:
        """Ids of the simulations whose numbers went bad since this was last asked; MuJoCo has reset them."""
        ...

    def state(self) -> dict[str, np.ndarray]: ...

    def restore(self, state: dict[str, np.ndarray]) -> None: ...


class Cores:
    """`mujoco.batch` on `threads` threads (0: all cores). Bit-identical at any number of threads."""

    def __init__(self, model: mujoco.MjModel, n: int, threads: int = 0):
        self.model, self.n = model, n
        self.batch = mujoco.batch.Batch(model, n, threads)
        self._fields: dict[str, np.ndarray] = {}
        self._unknown = [self._writable(name) for name in CONTACT_FORCES] if has_contact_forces(model) else []
        self._bad = self._warnings()

    def field(self, name: str) -> np.ndarray:
        if name not in self._fields:
            data = name in mujoco.batch.DATA_FIELDS
            self._fields[name] = self.batch.bind(name) if data else self.batch.expand(name)
        return self._fields[name]

    def step(self, nstep: int) -> None:
        self.batch.step(nstep=nstep)

    def reset(self, ids: np.ndarray) -> None:
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)

    def forward(self, ids: np.ndarray) -> None:
        self.batch.forward(ids)
        for forces in self._unknown:
            forces[ids] = 0

    def failed(self) -> np.ndarray:
        bad = self._warnings()
        grown, self._bad = np.flatnonzero(bad > self._bad), bad
        return grown

    def state(self) -> dict[str, np.ndarray]:
        """The state rows; derived fields, which are a substep behind them; and model fields that differ by row."""
        return {"rows": self.batch.state.copy(), **{name: value.copy() for name, value in self._fields.items()}}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for name, value in state.items():
            if name == "rows":
                self.batch.state[:] = value
            else:
                self._writable(name)[...] = value

    def _warnings(self) -> np.ndarray:
        """How often each simulation's numbers were found bad, (n,)."""
        return self.batch.warning[:, BAD, 1].sum(axis=1)

    def _writable(self, name: str) -> np.ndarray:
        """A view of the field that may be written, derived or not; `field` gives those that are derived read-only."""
        own = self.field(name)
        before, own.flags.writeable = own.flags.writeable, True
        view = own[:]
        own.flags.writeable = before
        return view
