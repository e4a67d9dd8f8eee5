"""skrl's PPO with what its own examples for robots use: scaled observations and values, a rate that follows the
divergence, an ELU perceptron; eight environments and large minibatches, for two cores."""

import time

import gymnasium
import numpy as np
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.resources.schedulers.torch import KLAdaptiveLR
from skrl.utils import set_seed
from snapshots import Snapshots, spec

ENVS, ROLLOUT, HIDDEN = 8, 256, 64


def layers(size: int, out: int) -> torch.nn.Sequential:
    middle = [torch.nn.Linear(size, HIDDEN), torch.nn.ELU(), torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ELU()]
    return torch.nn.Sequential(*middle, torch.nn.Linear(HIDDEN, out))


class Policy(GaussianMixin, Model):
    def __init__(self, spaces: dict):
        Model.__init__(self, **spaces, device="cpu")
        GaussianMixin.__init__(self)
        self.net = layers(self.num_observations, self.num_actions)
        self.log_std = torch.nn.Parameter(torch.full((self.num_actions,), -1.0))

    def compute(self, inputs, role=""):
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Value(DeterministicMixin, Model):
    def __init__(self, spaces: dict):
        Model.__init__(self, **spaces, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = layers(self.num_observations, 1)

    def compute(self, inputs, role=""):
        return self.net(inputs["observations"]), {}


def main() -> None:
    asked = spec()
    torch.set_num_threads(asked["threads"])
    set_seed(asked["seed"])
    mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    env = wrap_env(gymnasium.make_vec(asked["env"], ENVS, "sync", vector_kwargs=mode))
    spaces = {"observation_space": env.observation_space, "state_space": None, "action_space": env.action_space}
    scaled = {"size": env.observation_space, "device": "cpu"}
    settings = PPO_CFG(
        rollouts=ROLLOUT, learning_epochs=8, mini_batches=ENVS * ROLLOUT // 512, learning_rate=1e-3,
        learning_rate_scheduler=KLAdaptiveLR, learning_rate_scheduler_kwargs={"kl_threshold": 0.02},
        observation_preprocessor=RunningStandardScaler, observation_preprocessor_kwargs=scaled,
        value_preprocessor=RunningStandardScaler, value_preprocessor_kwargs={"size": 1, "device": "cpu"},
        value_loss_scale=1.0,
    )  # fmt: skip
    settings.experiment.write_interval = settings.experiment.checkpoint_interval = 0
    models = {"policy": Policy(spaces), "value": Value(spaces)}
    agent = PPO(models=models, memory=RandomMemory(memory_size=ROLLOUT, num_envs=ENVS), cfg=settings, **spaces)
    agent.init()
    agent.enable_training_mode(True)
    snapshots = Snapshots(asked)
    steps = learn(env, agent, snapshots)
    wall, cpu = snapshots.now()
    snapshots.close(steps=steps, wall_s=wall, cpu_s=cpu, at=time.strftime("%Y-%m-%d", time.gmtime()))


def learn(env, agent: PPO, snapshots: Snapshots) -> int:
    """skrl's SequentialTrainer, ended by the budget."""
    (seen, _), step, go = env.reset(), 0, True
    while go:
        agent.pre_interaction(timestep=step, timesteps=10**9)
        with torch.no_grad():
            actions, _ = agent.act(seen, None, timestep=step, timesteps=10**9)
            after, rewards, terminated, truncated, infos = env.step(actions)
            agent.record_transition(
                observations=seen, states=None, actions=actions, rewards=rewards, next_observations=after,
                next_states=None, terminated=terminated, truncated=truncated, infos=infos, timestep=step,
                timesteps=10**9,
            )  # fmt: skip
        agent.post_interaction(timestep=step, timesteps=10**9)
        seen, step = after, step + 1
        go = step % 64 != 0 or snapshots(step * ENVS, lambda: matrices(agent, env))
    return step * ENVS


def matrices(agent: PPO, env) -> dict:
    scaler = agent._observation_preprocessor
    linear = [module for module in agent.policy.net if isinstance(module, torch.nn.Linear)]
    return {
        "layers": [(m.weight.detach().numpy().T.copy(), m.bias.detach().numpy().copy()) for m in linear],
        "activation": "elu", "squash": "bounds", "low": env.action_space.low, "high": env.action_space.high,
        "mean": scaler.running_mean.numpy().astype(np.float32),
        "scale": (1 / np.sqrt(scaler.running_variance.numpy() + scaler.epsilon)).astype(np.float32),
    }  # fmt: skip


if __name__ == "__main__":
    main()
