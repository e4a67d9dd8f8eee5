"""rl_games over EnvPool, with the settings that rl_games ships for HalfCheetah on EnvPool. `torch.compile` is off: it
takes a minute on two cores, as long as the whole budget."""

import tempfile
import time
from pathlib import Path

import numpy as np
import rl_games
import torch
import yaml
from rl_games.common.algo_observer import AlgoObserver
from rl_games.torch_runner import Runner
from snapshots import Snapshots, spec

SETTINGS = Path(rl_games.__file__).parent / "configs" / "mujoco" / "halfcheetah_envpool.yaml"


class OverError(Exception):
    """The budget is used up."""


class Watch(AlgoObserver):
    def __init__(self, asked: dict):
        super().__init__()
        self.asked, self.steps = asked, 0

    def after_init(self, algo) -> None:
        self.algo, self.snapshots = algo, Snapshots(self.asked)

    def after_clear_stats(self) -> None:
        pass

    def after_print_stats(self, frame, epoch_num, total_time) -> None:
        self.steps = epoch_num * self.algo.batch_size
        if not self.snapshots(self.steps, lambda: matrices(self.algo)):
            raise OverError


def matrices(algo) -> dict:
    network, scaler = algo.model.a2c_network, algo.model.running_mean_std
    linear = [m for m in network.actor_mlp if isinstance(m, torch.nn.Linear)] + [network.mu]
    low, high = algo.actions_low.numpy(), algo.actions_high.numpy()
    return {
        "layers": [(m.weight.detach().numpy().T.copy(), m.bias.detach().numpy().copy()) for m in linear],
        "activation": "elu", "squash": "clip", "shift": (high + low) / 2, "gain": (high - low) / 2,
        "mean": scaler.running_mean.numpy().astype(np.float32),
        "scale": (1 / np.sqrt(scaler.running_var.numpy() + scaler.epsilon)).astype(np.float32),
    }  # fmt: skip


def main() -> None:
    asked = spec()
    torch.set_num_threads(asked["threads"])
    settings = yaml.safe_load(SETTINGS.read_text())
    params = settings["params"]
    params["seed"] = asked["seed"]
    with tempfile.TemporaryDirectory() as folder:
        params["config"] |= {
            "max_epochs": 10**6, "device": "cpu", "device_name": "cpu", "train_dir": folder, "print_stats": False,
            "torch_compile": False,
            "env_config": {"env_name": asked["env"], "seed": asked["seed"], "num_threads": asked["threads"]},
        }  # fmt: skip
        watch = Watch(asked)
        runner = Runner(watch)
        runner.load(settings)
        try:
            runner.run_train({"train": True})
        except OverError:
            wall, cpu = watch.snapshots.now()
    watch.snapshots.close(steps=watch.steps, wall_s=wall, cpu_s=cpu, at=time.strftime("%Y-%m-%d", time.gmtime()))


if __name__ == "__main__":
    main()
