"""A few demonstrations become many: stretches keep to the things they belong to, and most of what is made succeeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from atoll.core.errors import InvalidRequest, NotFound
from atoll.physical.sim import load_task
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.amplify import Player, Stretch, choose, cut, flip, move
from atoll.physical.synth.episode import Episode
from atoll.physical.synth.experts import Noise, expert
from atoll.physical.synth.record import record
from atoll.physical.synth.segments import SEGMENTS, Segment, block, goal, named

NOISE = Noise(waypoint=0.003, action=0.005)


def shown(name: str, count: int = 10) -> list[Episode]:
    sim = Sim(load_task(name), count)
    return [take.episode for take in record(sim, expert(sim, NOISE), range(count))]


@pytest.fixture(scope="module")
def picked() -> list[Episode]:
    return shown("pick-place")


def test_ten_demonstrations_become_many_that_succeed(picked: list[Episode]) -> None:
    sim = Sim(load_task("pick-place"), 64)
    takes = record(sim, Player(sim, picked, NOISE), range(1000, 1064))
    assert len(takes) >= 0.9 * 64
    assert len({take.episode.facts["source"] for take in takes}) >= 5
    for take in takes:
        assert take.episode.success[-5:].all() and not take.episode.success[:-5].all()
        assert len(take.states) == len(take.episode) <= sim.task.horizon
        assert (take.episode.action >= sim.action_low - 1e-6).all()
        assert (take.episode.action <= sim.action_high + 1e-6).all()


@pytest.mark.parametrize("name", ["reach", "push"])
def test_other_tasks_too(name: str) -> None:
    sim = Sim(load_task(name), 24)
    assert len(record(sim, Player(sim, shown(name, 6), NOISE), range(1000, 1024))) >= 0.8 * 24


def test_what_is_made_depends_on_the_seed_alone(picked: list[Episode]) -> None:
    few, many = Sim(load_task("pick-place"), 2), Sim(load_task("pick-place"), 5)
    record(few, Player(few, picked, NOISE), [1, 2])
    some = record(few, Player(few, picked, NOISE), [41, 42])
    more = {take.episode.facts["seed"]: take for take in record(many, Player(many, picked, NOISE), range(40, 45))}
    assert some
    for take in some:
        other = more[take.episode.facts["seed"]].episode
        for name in ("observation", "action", "reward", "success"):
            assert np.array_equal(getattr(take.episode, name), getattr(other, name))


def test_a_moved_stretch_is_to_its_thing_as_it_was() -> None:
    chance = np.random.default_rng(0)
    turns = Rotation.random(7, rng=chance).as_matrix()
    stretch = Stretch(chance.normal(size=(5, 3)), turns[:5], np.zeros(5), (chance.normal(size=3), turns[5]))
    anchor = chance.normal(size=3), turns[6]
    position, rotation = move(stretch, anchor)
    before = (stretch.position - stretch.anchor[0]) @ stretch.anchor[1]
    assert np.allclose((position - anchor[0]) @ anchor[1], before)
    assert np.allclose(anchor[1].T @ rotation, stretch.anchor[1].T @ stretch.rotation)


def test_a_cube_is_taken_by_the_nearer_face_and_a_gripper_by_the_nearer_way_round() -> None:
    flat, zero = np.eye(3), np.zeros(3)
    stretch = Stretch(zero[None], flat[None], np.zeros(1), (zero, flat))
    turned = Rotation.from_euler("z", 80, degrees=True).as_matrix()
    cube, brick = Segment(block, turns=4), Segment(block)
    for segment, angle in ((cube, -10), (brick, 80)):
        _, rotation = choose([stretch], (zero, turned), segment, np.random.default_rng(0))
        assert np.allclose(Rotation.from_matrix(rotation).as_euler("zyx", degrees=True)[0], angle)
    over = Rotation.from_euler("z", 170, degrees=True).as_matrix()
    _, rotation = flip((zero[None], over[None]), flat)
    assert np.allclose(Rotation.from_matrix(rotation[0]).as_euler("zyx", degrees=True)[0], -10)


def test_stretches_cover_the_grasp_and_the_release(picked: list[Episode]) -> None:
    task = load_task("pick-place")
    grasps, releases = cut(picked, task.channels, SEGMENTS["pick-place"])
    assert len(grasps) == len(releases) == len(picked)
    for grasp, release, episode in zip(grasps, releases, picked, strict=True):
        assert grasp.width[0] > 0.07 and grasp.width[-1] == 0
        assert release.width[0] == 0 and release.width[-1] > 0.07
        rows = named(episode.observation, task.channels)
        assert np.allclose(release.anchor[0], rows["goal"][0])
        position, rotation = block(rows)
        assert np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-6)
        assert np.allclose(goal(rows)[1], np.eye(3))
        assert np.abs(grasp.anchor[0] - position[0]).max() < 1e-3


def test_a_demonstration_that_lacks_a_part_is_named(picked: list[Episode]) -> None:
    short = dataclasses.replace(picked[1], observation=picked[1].observation[:20], action=picked[1].action[:20])
    sim = Sim(load_task("pick-place"), 1)
    with pytest.raises(InvalidRequest, match="demonstration 1 lacks a segment"):
        Player(sim, [picked[0], short])
    with pytest.raises(InvalidRequest, match="at least one demonstration"):
        Player(sim, [])
    with pytest.raises(NotFound, match="the segments of 'half-cheetah' are not known"):
        Player(Sim(load_task("half-cheetah"), 1), picked)
