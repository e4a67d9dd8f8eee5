"""The peer of policy.py: openpi's own server class (openpi-server) over the same perceptron, from `weights.npz`.

`python policy_openpi.py PORT weights.npz`, in the environment of peers/openpi.txt.
"""

import sys

import numpy as np
from openpi_client.base_policy import BasePolicy
from openpi_server import WebsocketPolicyServer


class Perceptron(BasePolicy):
    """`atoll.physical.policy.MlpPolicy`, written again: its environment has another numpy."""

    def __init__(self, path: str) -> None:
        saved = np.load(path)
        self.weights = {name: saved[name] for name in saved.files}
        self.layers = sum(name.endswith(".weight") for name in self.weights)

    def infer(self, obs: dict) -> dict:
        w = self.weights
        x = np.clip((obs["observation"][None] - w["observation.mean"]) * w["observation.scale"], -10, 10)
        for i in range(self.layers):
            x = x @ w[f"{i}.weight"] + w[f"{i}.bias"]
            if i < self.layers - 1:
                x = np.tanh(x)
        return {"actions": w["action.shift"] + w["action.scale"] * np.clip(x, -1, 1)}

    def reset(self) -> None: ...


if __name__ == "__main__":
    WebsocketPolicyServer(Perceptron(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1])).serve_forever()
