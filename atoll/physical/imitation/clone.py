"""Learning from demonstrations, step by step, so that a kill costs seconds and changes nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atoll.core.errors import Conflict, InvalidRequest
from atoll.core.manifest import Image
from atoll.core.runs import Reporter
from atoll.physical.imitation.data import Demonstrations, read_demonstrations
from atoll.physical.imitation.networks import NETWORKS, Sizes
from atoll.physical.imitation.stage import Config
from atoll.physical.policy import SPEC, MlpPolicy, Policy, check_fit, manifest_of, save_policy
from atoll.physical.rl import checkpoint
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.card import lineage

CHECKPOINT_EVERY_S = 5.0
TELL_EVERY_S = 0.5
WARM_UP = 200
STEPS = {"mlp": 6000, "act": 2500, "diffusion": 12000}
WIDTHS = {"mlp": 256, "act": 96, "diffusion": 384}


def clone(config: Config, dataset: Path, out: Path, report: Reporter) -> None:
    """Leave the policy that was learned in `out`. Raises AtollError."""
    if not (out / SPEC).exists():
        torch.set_num_threads(1)
        shown = read_demonstrations(dataset, config.cameras)
        cloner = Cloner(shown, config)
        _learn(cloner, out / ".work" / "checkpoint.npz", report)
        save_policy(cloner.policy(), out, lineage(dataset))
    shutil.rmtree(out / ".work", ignore_errors=True)


class Cloner:
    """A network and its optimiser. What step `k` learns from depends on the seed and `k` alone."""

    def __init__(self, shown: Demonstrations, config: Config):
        self.shown, self.config, self.step = shown, config, 0
        self.total = config.steps or STEPS[config.kind]
        self.width = config.width or WIDTHS[config.kind]
        torch.manual_seed(config.seed)
        states, actions = shown.states.shape[1], shown.actions.shape[1]
        self.network = NETWORKS[config.kind](Sizes(states, actions, config.chunk, self.width, config.cameras))
        if config.kind == "diffusion":
            self.network.noise.normal_(generator=torch.Generator().manual_seed(config.seed))
        self.kept = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(self.network.parameters(), config.learning_rate, weight_decay=1e-4)
        self.mean, spread = shown.states.mean(axis=0), shown.states.std(axis=0)
        self.gain = np.where(spread > 1e-4, 1 / np.maximum(spread, 1e-4), 1.0).astype(np.float32)
        low, high = shown.actions.min(axis=0), shown.actions.max(axis=0)
        self.shift, self.scale = (low + high) / 2, np.maximum((high - low) / 2, 1e-4)

    def learn(self) -> float:
        """One step; returns its loss. Raises InvalidRequest where it is not a number."""
        config = self.config
        rate = config.learning_rate * min((self.step + 1) / WARM_UP, 1.0) * _cosine(self.step / self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rows = np.random.default_rng((config.seed, self.step)).integers(len(self.shown.states), size=config.batch)
        state = torch.from_numpy(np.clip((self.shown.states[rows] - self.mean) * self.gain, -10, 10))
        chunk = torch.from_numpy((self.shown.chunks(rows, config.chunk) - self.shift) / self.scale)
        images = {name: torch.from_numpy(frames[rows]) for name, frames in self.shown.images.items()}
        noise = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        loss = self.network.loss(state, images, chunk, noise)
        if not torch.isfinite(loss):
            told = f"the loss is not a number at step {self.step}; lower 'learning_rate'"
            raise InvalidRequest(told, param="learning_rate")
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self._average()
        return float(loss.detach())

    def _average(self) -> None:
        share = min(self.config.average, self.step / (self.step + 10))
        for name, value in self.network.state_dict().items():
            self.kept[name].lerp_(value, 1 - share)

    def policy(self) -> Policy:
        """Raises InvalidRequest where the data set does not fit its task."""
        config, shown = self.config, self.shown
        sim = Sim(load_task(shown.task), 1)
        pictures = tuple(Image(name, *frames.shape[1:3]) for name, frames in shown.images.items())
        network = {"activation": "relu", "squash": "none", "width": self.width}
        kind = "cnn" if config.kind == "mlp" and pictures else config.kind
        manifest = manifest_of(sim, kind, chunk=config.chunk, images=pictures, network=network)
        check_fit(manifest, sim)
        scales = {"observation.mean": self.mean, "observation.scale": self.gain}
        scales |= {"action.shift": self.shift, "action.scale": self.scale}
        if kind == "mlp":
            return MlpPolicy(manifest, {**scales, **self._layers()})
        from atoll.physical.imitation.policies import TorchPolicy

        return TorchPolicy(manifest, {**scales, **{f"net.{name}": value.numpy() for name, value in self.kept.items()}})

    def _layers(self) -> dict[str, np.ndarray]:
        numbers = sorted({int(name.split(".")[1]) for name in self.kept})
        told = {}
        for i, number in enumerate(numbers):
            told[f"{i}.weight"] = self.kept[f"body.{number}.weight"].numpy().T
            told[f"{i}.bias"] = self.kept[f"body.{number}.bias"].numpy()
        return told

    def state(self) -> dict[str, Any]:
        moments = self.optimiser.state_dict()["state"]
        return {
            "step": self.step,
            "network": _arrays(self.network.state_dict()),
            "kept": _arrays(self.kept),
            "moments": {str(i): _arrays(values) for i, values in moments.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.network.load_state_dict(_tensors(state["network"]))
        self.kept = _tensors(state["kept"])
        moments = {int(i): _tensors(values) for i, values in state["moments"].items()}
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})


def _learn(cloner: Cloner, path: Path, report: Reporter) -> None:
    told = {**asdict(cloner.config), "cameras": list(cloner.config.cameras)}
    if (saved := checkpoint.load(path)) is not None:
        if saved["config"] != told:
            raise Conflict("this folder holds a run of another configuration", param="config")
        cloner.restore(saved["cloner"])
    telling = keeping = time.monotonic()
    losses: list[float] = []
    while cloner.step < cloner.total:
        losses.append(cloner.learn())
        now = time.monotonic()
        if now - telling > TELL_EVERY_S or cloner.step == cloner.total:
            report.progress(cloner.step, cloner.total, loss=float(np.mean(losses)))
            telling, losses = now, []
        if now - keeping > CHECKPOINT_EVERY_S:
            checkpoint.save(path, {"config": told, "cloner": cloner.state()})
            keeping = now


def _cosine(share: float) -> float:
    return float(0.02 + 0.98 * (1 + np.cos(np.pi * share)) / 2)


def _arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in tensors.items()}


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
