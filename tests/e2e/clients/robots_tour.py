"""Clients of openpi and of GR00T's service, as they are published, ask for actions; prints what they got as JSON."""

import json
import os
import sys

import numpy as np
from inspect_robots.types import Observation
from inspect_robots_unitree_g1.config import Gr00tConfig
from inspect_robots_unitree_g1.policy import Gr00tPolicy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

JOINTS, GOAL = np.zeros(2, np.float32), np.array([0.5, -0.5], np.float32)


def openpi() -> dict:
    """The client itself, and openpi's broker, which hands out a chunk action by action."""
    url = f"{os.environ['ATOLL_URL'].replace('http', 'ws', 1)}/atoll/v1/policies/two/openpi?consent=true&simulated=true"
    client = WebsocketClientPolicy(url, api_key=os.environ["ATOLL_KEY"])
    broker = ActionChunkBroker(client, action_horizon=3)
    given = [broker.infer({"observation/joints": JOINTS, "observation/goal": GOAL})["actions"] for _ in range(3)]
    try:
        client.infer({"observation/knee": JOINTS})
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    return {
        "task": client.get_server_metadata()["manifest"]["task"],
        "actions": np.array(given).tolist(),
        "refused": refused,
    }


def groot(port: int) -> dict:
    """The client of a published robot package, which brings no API key."""
    policy = Gr00tPolicy(Gr00tConfig(host="127.0.0.1", port=port, timeout_s=10.0, action_horizon=4, replan_interval=4))
    state = {"joint_pos": np.full(16, 0.1), "left_leg": np.zeros(6), "right_leg": np.zeros(6), "waist": np.zeros(3)}
    camera = np.zeros((8, 8, 3), np.uint8)
    chunk = policy.act(Observation(images={"head_cam": camera}, state=state, instruction="wave"))
    return {"actions": [np.asarray(action.data).tolist() for action in chunk.actions]}


print(json.dumps({"openpi": openpi(), "groot": groot(int(sys.argv[1]))}))
