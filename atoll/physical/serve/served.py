"""A policy that is promoted: what its sessions share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll.core.errors import AtollError, InvalidRequest, NotInstalled
from atoll.core.manifest import Channel, Manifest
from atoll.core.session import Latch, Rules, rules_of
from atoll.physical.serve.audit import Audit
from atoll.physical.serve.wire import array

if TYPE_CHECKING:
    from atoll.physical.policy import Policy
    from atoll.physical.serve.line import Line

QUICK_S = 0.5e-3
TRIES = 20
FAILURES = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)

Array = np.ndarray
Seen = tuple[Array, Mapping[str, Array]]


class Served:
    """`version` is the digest of the policy's folder. `latch` is the stop that holds for all sessions. A policy that
    answers within half a millisecond is asked where the message arrives; others have a thread, one for all sessions."""

    latch: Latch | None = None

    def __init__(self, name: str, version: str, policy: Policy, audit: Audit):
        self.name, self.version, self.policy, self.audit = name, version, policy, audit
        self.manifest: Manifest = policy.manifest
        self.rules: Rules = rules_of(self.manifest)
        self.lines: set[Line] = set()
        self.answered = 0
        self.quick = self._try() < QUICK_S
        self._pool = None if self.quick else ThreadPoolExecutor(1, f"policy {name}")
        self._measured = measured_in(self.manifest)
        self._ranges = [c for c in self.manifest.observation if np.isfinite((c.low, c.high)).all()]

    def read(self, message: Mapping[str, Any]) -> Seen:
        """The observation in a message: (1, o) float32, and pictures (1, h, w, 3). Raises InvalidRequest naming the
        channel that is missing, has another size, is not finite or far outside its range."""
        given = message.get("observation")
        named = isinstance(given, Mapping) and "data" not in given
        flat = self._named(given) if named else array(given, "observation").ravel()
        if len(flat) != self.manifest.observation_size:
            raise InvalidRequest(
                f"'observation' has {len(flat)} values, not {self.manifest.observation_size}", param="observation"
            )
        flat = flat.astype(np.float32)
        if not np.isfinite(flat).all():
            where = self.manifest.observation[_owner(self.manifest.observation, int(np.argmin(np.isfinite(flat))))].name
            raise InvalidRequest(f"'{where}' is not finite", param=f"observation.{where}")
        for channel in self._ranges:
            self._check(channel, flat)
        return flat[None], self._images(message.get("images") or {})

    def measured(self, seen: Seen) -> list[float] | None:
        """Where the robot is, in terms of the action."""
        return None if self._measured is None else seen[0][0, self._measured].tolist()

    def infer(self, seen: Seen) -> Array | None:
        """(chunk, a), or None where the policy failed."""
        try:
            actions = np.asarray(self.policy.act(*seen))
        except FAILURES as error:
            self.audit.write("policy_failed", "", version=self.version, error=f"{type(error).__name__}: {error}")
            return None
        self.answered += 1
        return actions[0] if actions.shape == (1, self.manifest.chunk, self.manifest.action_size) else None

    def submit(self, seen: Seen, done: Callable[[Future[Array | None]], None]) -> None:
        """`infer` in the policy's own thread, which then calls `done`."""
        assert self._pool is not None
        self._pool.submit(self.infer, seen).add_done_callback(done)

    def stop(self, latch: Latch) -> None:
        self.latch = latch
        for line in list(self.lines):
            line.stop(latch)

    def release(self, token: str) -> None:
        self.latch = None
        for line in list(self.lines):
            line.release(token)

    def close(self, why: str) -> None:
        """End all sessions; what they drive is told to be safe first."""
        for line in list(self.lines):
            line.end(why)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _try(self) -> float:
        """Seconds that an answer takes, the best of a few."""
        seen = np.zeros((1, self.manifest.observation_size), np.float32)
        images = {i.name: np.zeros((1, i.height, i.width, 3), np.uint8) for i in self.manifest.images}
        times = []
        for _ in range(TRIES):
            start = time.perf_counter()
            actions = np.asarray(self.policy.act(seen, images))
            times.append(time.perf_counter() - start)
            if times[-1] > 10 * QUICK_S:
                break
        if actions.shape != (1, self.manifest.chunk, self.manifest.action_size):
            raise InvalidRequest(f"the policy gives {actions.shape}, not what its manifest says", param="policy")
        return min(times)

    def _named(self, given: Mapping[str, Any]) -> Array:
        parts = []
        for channel in self.manifest.observation:
            part = array(given.get(channel.name, ()), f"observation.{channel.name}").ravel()
            if len(part) != channel.size:
                message = f"'{channel.name}' must have {channel.size} values, not {len(part)}"
                raise InvalidRequest(message, param=f"observation.{channel.name}")
            parts.append(part)
        unknown = given.keys() - {channel.name for channel in self.manifest.observation}
        if unknown:
            known = ", ".join(channel.name for channel in self.manifest.observation)
            message = f"there is no '{min(map(str, unknown))}' in the observation; there are: {known}"
            raise InvalidRequest(message, param="observation")
        return np.concatenate(parts)

    def _check(self, channel: Channel, flat: Array) -> None:
        """Noise goes a little beyond a range. Beyond it by its width is a broken sensor, or another unit."""
        at = _start(self.manifest.observation, channel)
        values, width = flat[at : at + channel.size], channel.high - channel.low
        if not ((channel.low - width <= values) & (values <= channel.high + width)).all():
            usual = f"{channel.low:g} to {channel.high:g} {channel.unit}".rstrip()
            told = f"'{channel.name}' is {values.tolist()}, far outside {usual}"
            raise InvalidRequest(told, param=f"observation.{channel.name}")

    def _images(self, given: Mapping[str, Any]) -> dict[str, Array]:
        if not isinstance(given, Mapping):
            raise InvalidRequest("'images' must be a map", param="images")
        images = {}
        for image in self.manifest.images:
            shape = (image.height, image.width, 3)
            picture = array(given.get(image.name, ()), f"images.{image.name}")
            if picture.shape != shape or picture.dtype.kind not in "iu":
                raise InvalidRequest(f"'{image.name}' must be {shape} of uint8", param=f"images.{image.name}")
            images[image.name] = picture.astype(np.uint8)[None]
        return images


def load(name: str, version: str, folder: Path, audit: Audit) -> Served:
    """Raises AtollError: NotInstalled where the extra is missing, else what is wrong with the policy. A network for one
    robot is too small for several threads, which would only wait for each other."""
    try:
        from atoll.physical.policy import load_policy

        policy = load_policy(folder)
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)
        return Served(name, version, policy, audit)
    except ModuleNotFoundError as error:
        raise NotInstalled(f"'{error.name}' is not installed; run: make physical") from None
    except FAILURES as error:
        raise AtollError(f"policy '{name}' cannot be loaded: {type(error).__name__}: {error}") from None


def measured_in(manifest: Manifest) -> Array | None:
    """Where in the observation the actions' present values stand: where the manifest tells, else in channels of the
    same name, size and unit. Raises InvalidRequest for a place that there is not."""
    if told := manifest.measured:
        if len(told) != manifest.action_size or not all(0 <= i < manifest.observation_size for i in told):
            message = f"'measured' must be {manifest.action_size} places in the observation"
            raise InvalidRequest(message, param="measured")
        return np.array(told)
    seen = {(c.name, c.size, c.unit): _start(manifest.observation, c) for c in manifest.observation}
    found = [(seen.get((c.name, c.size, c.unit)), c.size) for c in manifest.action]
    if any(start is None for start, _ in found):
        return None
    return np.concatenate([np.arange(start, start + size) for start, size in found])


def _start(channels: tuple[Channel, ...], channel: Channel) -> int:
    return sum(c.size for c in channels[: channels.index(channel)])


def _owner(channels: tuple[Channel, ...], index: int) -> int:
    ends = np.cumsum([c.size for c in channels])
    return int(np.searchsorted(ends, index, side="right"))
