"""One simulated episode of a served policy, in a process of its own: `python -m atoll.physical.serve.episode` reads one
JSON line (`describe` a task's goal, or `run` it) and prints one. The policy moves the simulation through the WebSocket,
as it would a robot, so that the same limits, stop and audit hold.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from atoll.core.errors import AtollError, InvalidRequest, to_wire
from atoll.core.manifest import Manifest
from atoll.physical.policy import check_fit, spec
from atoll.physical.serve.client import Answer, Robot, connect
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim, Step
from atoll.physical.sim.task import Array, Task
from atoll.physical.synth.cameras import Cameras

GOAL = "goal"
DRAWS = 512
COMMANDS = {"go1-velocity": ("forward", "sideways", "turn"), "humanoid-walk": ("forward", "sideways", "turn")}
"""What the numbers of a task's command are called, where it is known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """What a task can be asked: `names` of numbers within `low`..`high`. `fixed` is the whole, with those that cannot
    be asked (`free` says which can) as the task draws them."""

    names: tuple[str, ...]
    low: Array
    high: Array
    free: Array
    fixed: Array
    about: str


def goal_of(task: Task) -> Goal | None:
    """The task's command, or the place of its body `goal`; the range is the one that the task itself draws from."""
    sim = Sim(task, 64, threads=1)
    if not (task.command_size or _moves_goal(sim)):
        return None
    drawn = []
    for i in range(DRAWS // sim.n):
        sim.reset(list(range(i * sim.n, (i + 1) * sim.n)))
        drawn.append(sim.command.copy() if task.command_size else sim.field("mocap_pos")[:, 0].copy())
    values = np.concatenate(drawn)
    low, high = np.round(values.min(axis=0), 2), np.round(values.max(axis=0), 2)
    names = COMMANDS.get(task.name, tuple(f"command_{i}" for i in range(task.command_size))) or tuple("xyz")
    about = "what is commanded" if task.command_size else "metres in the world frame, z up"
    return Goal(names, low, high, high > low, values[0], about)


def aimed(task: Task, goal: Sequence[float]) -> Task:
    """The task, asked for `goal` throughout."""
    if task.command_size:

        def hold(sim: Sim, begun: Array) -> None:
            sim.command[:] = goal

        return dataclasses.replace(task, command=hold)

    def reset(sim: Sim, i: int, rng: np.random.Generator) -> None:
        task.reset(sim, i, rng)
        sim.field("mocap_pos")[i, 0] = goal

    return dataclasses.replace(task, reset=reset)


def describe(name: str) -> dict[str, Any]:
    """`about` the task, and its goal as properties of a JSON schema."""
    task = load_task(name)
    goal = goal_of(task)
    properties = {}
    for i, free in enumerate([] if goal is None else goal.free):
        if free:
            bounds = {"minimum": float(goal.low[i]), "maximum": float(goal.high[i])}
            properties[goal.names[i]] = {"type": "number", **bounds, "description": goal.about}
    return {"about": task.about or task.name, "properties": properties}


async def run(url: str, ticket: str, name: str, asked: dict[str, float], seed: int) -> dict[str, Any]:
    """What happened. Raises AtollError."""
    task = load_task(name)
    if asked:
        task = aimed(task, _values(task, asked))
    sim = Sim(task, 1, threads=1)
    async with connect(url, ticket, consent=True, simulated=True) as robot:
        manifest = TypeAdapter(Manifest).validate_python(robot.metadata["manifest"])
        check_fit(manifest, sim)
        with Cameras(sim, manifest.images) as look:
            return await Episode(sim, manifest, robot, look).run(seed)


class Episode:
    """One simulation, moved by `robot`, in simulated time. Of a chunk, half is carried out before it looks again, as
    in the gate."""

    def __init__(self, sim: Sim, manifest: Manifest, robot: Robot, look: Cameras):
        self.sim, self.robot, self.look = sim, robot, look
        self.execute = (manifest.chunk + 1) // 2
        self.repeat = round(1 / (manifest.rate_hz * sim.dt))
        if self.repeat < 1 or abs(self.repeat * sim.dt * manifest.rate_hz - 1) > 1e-6:
            rates = f"{manifest.rate_hz:g} Hz, but the simulation's is {1 / sim.dt:g} Hz"
            raise InvalidRequest(f"the policy's rate is {rates}, which is no multiple of it")
        self.seen: Array = np.empty(0)
        self.limits: Counter[str] = Counter()
        self.safe: Counter[str] = Counter()
        self.total, self.streak, self.last = 0.0, 0, None

    async def run(self, seed: int) -> dict[str, Any]:
        self.seen = self.sim.reset([seed])[0]
        while not self.over():
            pictures = {name: views[0] for name, views in self.look(self.sim.all).items()}
            at = 1.0 + float(self.sim.elapsed[0]) * self.sim.dt
            answer = await self.robot.act(self.seen, images=pictures, at=at)
            self.limits.update(answer.limited)
            if answer.safe:
                self.safe[answer.safe] += 1
            self.carry_out(answer)
            if answer.safe == "stopped" or not len(answer.actions):
                break
        return self.told()

    def carry_out(self, answer: Answer) -> None:
        for action in answer.actions if answer.safe else answer.actions[: self.execute]:
            for _ in range(self.repeat):
                step = self.last = self.sim.step(action[None], begin=False)
                self.total += float(step.reward[0])
                self.streak = self.streak + 1 if step.success[0] else 0
                self.seen = step.observation[0]
                if self.over():
                    return

    def over(self) -> bool:
        step: Step | None = self.last
        return step is not None and bool(step.terminated[0] or step.truncated[0] or self.streak >= self.sim.task.hold)

    def told(self) -> dict[str, Any]:
        seen, at, final = self.seen.astype(float), 0, {}
        for channel in spec(self.sim)[0]:
            values = [round(value, 4) for value in seen[at : at + channel.size].tolist()]
            final[channel.name] = values if channel.size > 1 else values[0]
            at += channel.size
        return {
            "success": self.streak >= self.sim.task.hold,
            "stopped": "stopped" in self.safe,
            "steps": int(self.sim.elapsed[0]),
            "seconds": round(float(self.sim.elapsed[0]) * self.sim.dt, 3),
            "final": final,
            "limits": dict(self.limits),
            "safe": dict(self.safe),
            "return": round(self.total, 3),
            "simulated": True,
        }


def _values(task: Task, asked: dict[str, float]) -> list[float]:
    goal = goal_of(task)
    if goal is None:
        raise InvalidRequest(f"task '{task.name}' cannot be asked for anything", param=min(asked))
    values = goal.fixed.tolist()
    for name, value in asked.items():
        values[goal.names.index(name)] = value
    return values


def _moves_goal(sim: Sim) -> bool:
    model = sim.model
    return any(model.body(i).name == GOAL and model.body_mocapid[i] == 0 for i in range(model.nbody))


def main() -> None:
    told = json.loads(sys.stdin.readline())
    action = told.pop("action")
    try:
        result = describe(**told) if action == "describe" else asyncio.run(run(**told))
        print(json.dumps({"result": result}))
    except AtollError as error:
        print(json.dumps({"error": to_wire(error)}))


if __name__ == "__main__":
    main()
