"""Stable-Baselines3's PPO: as it comes, with CleanRL's settings, or tuned for two cores."""

import time

import numpy as np
import torch
from gymnasium.wrappers import RescaleAction
from snapshots import Snapshots, spec
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

# "default" is what `PPO("MlpPolicy", env)` does. "cleanrl" has the published settings of CleanRL's
# ppo_continuous_action.py, which differ from the defaults by normalisation, a clipped value loss and a rate that goes
# down over a million steps. "tuned" has normalisation, large minibatches and Atoll's exploration.
SETTINGS = {
    "default": {"envs": 1, "normalise": False, "ppo": {}},
    "cleanrl": {
        "envs": 1, "normalise": True, "steps": 1_000_000, "ppo": {
            "learning_rate": lambda left: 3e-4 * left, "n_steps": 2048, "batch_size": 64, "n_epochs": 10,
            "clip_range_vf": 0.2,
        },
    },
    "tuned": {
        "envs": 8, "normalise": True, "ppo": {
            "n_steps": 512, "batch_size": 1024, "n_epochs": 8, "learning_rate": 1e-3, "target_kl": 0.03,
            "policy_kwargs": {"log_std_init": -1},
        },
    },
}  # fmt: skip


class Watch(BaseCallback):
    def __init__(self, snapshots: Snapshots, policy):
        super().__init__()
        self.snapshots, self.take, self.go = snapshots, policy, True

    def _on_step(self) -> bool:
        self.go = self.go and (self.n_calls % 64 != 0 or self.snapshots(self.num_timesteps, self.take))
        return self.go


def simulations(asked: dict, count: int) -> VecEnv:
    """Of gymnasium, or of a task of Atoll's own through its Gymnasium API, with actions rescaled to -1..1."""
    if asked["env"].endswith("-v5"):
        return make_vec_env(asked["env"], count, seed=asked["seed"])
    from atoll.physical.sim import load_task
    from atoll.physical.sim.vector import Env

    return make_vec_env(lambda: RescaleAction(Env(load_task(asked["env"])), -1, 1), count, seed=asked["seed"])


def main() -> None:
    asked = spec()
    torch.set_num_threads(asked["threads"])
    chosen = SETTINGS[asked["settings"]]
    env = simulations(asked, chosen["envs"])
    if chosen["normalise"]:
        env = VecNormalize(env, gamma=chosen["ppo"].get("gamma", 0.99))
    model = PPO("MlpPolicy", env, seed=asked["seed"], device="cpu", **chosen["ppo"])
    snapshots = Snapshots(asked)
    model.learn(chosen.get("steps", 10**9), callback=Watch(snapshots, lambda: matrices(model, env)))
    wall, cpu = snapshots.now()
    snapshots.close(steps=model.num_timesteps, wall_s=wall, cpu_s=cpu, at=time.strftime("%Y-%m-%d", time.gmtime()))


def matrices(model: PPO, env) -> dict:
    modules = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [m for m in modules if isinstance(m, torch.nn.Linear)]
    acted, size = env.get_attr("unwrapped")[0].action_space, env.observation_space.shape[0]
    rescaled = (env.action_space.low != acted.low).any()
    mean, scale = np.zeros(size), np.ones(size)
    if isinstance(env, VecNormalize):
        mean, scale = env.obs_rms.mean, 1 / np.sqrt(env.obs_rms.var + env.epsilon)
    return {
        "layers": [(m.weight.detach().numpy().T.copy(), m.bias.detach().numpy().copy()) for m in linear],
        "activation": "relu" if any(isinstance(m, torch.nn.ReLU) for m in modules) else "tanh",
        "squash": "clip" if rescaled else "bounds", "low": acted.low, "high": acted.high,
        "shift": (acted.high + acted.low) / 2, "gain": (acted.high - acted.low) / 2,
        "mean": mean.astype(np.float32), "scale": scale.astype(np.float32),
    }  # fmt: skip


if __name__ == "__main__":
    main()
