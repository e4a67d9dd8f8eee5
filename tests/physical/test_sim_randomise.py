"""Dynamics by simulation, disturbances, and sensors that are noisy and late."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pytest
from carts import cart

from atoll.core.errors import InvalidRequest
from atoll.physical.sim import load_task, randomise, sensors
from atoll.physical.sim.sim import Sim
from atoll.physical.validate.measure import stressed


def pushed(n: int) -> np.ndarray:
    return np.full((n, 1), 0.5)


def test_a_heavier_cart_accelerates_less() -> None:
    sim = Sim(cart(randomise=(randomise.mass(0.5, 2.0),), frame_skip=1), 16)
    sim.reset()
    masses = sim.field("body_mass")[:, 1].copy()
    assert np.ptp(masses) > 0.5 and masses.min() >= 1 and masses.max() <= 4
    sim.step(pushed(16), begin=False)
    damping = 0.5 * 0.01  # which MuJoCo's Euler integrates implicitly
    assert np.allclose(sim.qvel[:, 0], 0.01 * 5 / (masses + damping), rtol=1e-12)


def test_what_mujoco_derives_from_a_mass_follows_it() -> None:
    sim = Sim(cart(randomise=(randomise.mass(0.5, 2.0),)), 8)
    sim.reset()
    batch = sim.physics.batch
    assert np.allclose(batch.body("cart").subtreemass, sim.field("body_mass")[:, 1:], rtol=1e-15)
    for i in range(8):
        model = batch.get_model(i)
        mujoco.mj_setConst(model, mujoco.MjData(model))
        assert np.array_equal(model.dof_invweight0, batch.get_model(i).dof_invweight0)


@pytest.mark.parametrize(
    ("factory", "field"),
    [
        (randomise.mass, "body_mass"),
        (randomise.inertia, "body_inertia"),
        (randomise.friction, "geom_friction"),
        (randomise.damping, "dof_damping"),
        (randomise.armature, "dof_armature"),
        (randomise.actuator_gain, "actuator_gainprm"),
        (randomise.gravity, "opt.gravity"),
    ],
)
def test_factors_stay_in_their_range_however_often_they_are_drawn(factory, field: str) -> None:
    def heavy() -> mujoco.MjSpec:
        spec = cart().model()
        spec.joint("rail").armature = 0.1
        return spec

    sim = Sim(cart(model=heavy, randomise=(factory(0.8, 1.25),), horizon=1), 10)
    own = np.asarray(getattr(sim.model.opt, field[4:]) if field.startswith("opt.") else getattr(sim.model, field))
    sim.reset()
    for _ in range(30):
        factor = sim.field(field)[:, own != 0] / own[own != 0]
        assert factor.min() >= 0.8 - 1e-12 and factor.max() <= 1.25 + 1e-12
        assert np.ptp(factor) > 0.05
        sim.step(pushed(10))


def test_named_objects_are_randomised_and_no_others() -> None:
    sim = Sim(cart(randomise=(randomise.friction(0.1, 0.5, "box"),)), 5)
    sim.reset()
    friction = sim.field("geom_friction")
    assert (friction[:, 0] == sim.model.geom_friction[0]).all()
    assert (friction[:, 1, 0] < 0.51).all() and np.ptp(friction[:, 1, 0]) > 0


def test_joints_with_many_degrees_of_freedom_are_randomised_whole() -> None:
    sim = Sim(replace(load_task("ant"), randomise=(randomise.armature(0.5, 2.0, "root", "hip_1"),)), 3)
    sim.reset()
    changed = (sim.field("dof_armature") != sim.model.dof_armature).any(axis=0)
    assert changed.nonzero()[0].tolist() == [6]  # the root has no armature to scale
    assert len(randomise._ids(sim, "dof", ("root", "hip_1"))) == 7


def test_pushes_come_and_go() -> None:
    sim = Sim(cart(disturb=(randomise.push("cart", (0.1, 0.2), 5.0, lasting=0.04),), horizon=100), 6)
    sim.reset()
    forces = []
    for _ in range(60):
        sim.step(np.zeros((6, 1)))
        forces.append(sim.field("xfrc_applied")[:, 1, :3].copy())
    size = np.linalg.norm(forces, axis=2)
    on = size > 0
    assert size.max() <= 5 and not np.array(forces)[:, :, 2].any()
    assert (on.sum(axis=0) >= 10).all() and (on.sum(axis=0) <= 30).all()  # 6 to 12 pushes of two steps in 1.2 s
    starts = (on[1:] & ~on[:-1]).sum(axis=0)
    assert (starts >= 5).all()


RICH = {
    "randomise": (randomise.mass(0.5, 2.0), randomise.gravity(0.9, 1.1), randomise.damping(0.5, 2.0)),
    "disturb": (randomise.push("cart", (0.05, 0.1), 5.0),),
    "sensors": (
        sensors.noise({"x": 0.01, "v": 0.1}),
        sensors.bias({"v": 0.2}),
        sensors.delay(1, 3, "x"),
        sensors.dropout(0.3),
        sensors.resolution({"x": 1e-3}),
    ),
}


def test_randomised_noisy_simulations_are_restored_to_the_last_bit() -> None:
    first, second = Sim(cart(**RICH, horizon=13), 5), Sim(cart(**RICH, horizon=13), 5, seed=99, threads=1)
    first.reset()
    second.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 5, 1))
    for action in actions[:30]:
        first.step(action)
    second.restore(first.state())
    for action in actions[30:]:
        one, two = first.step(action), second.step(action)
        assert np.array_equal(one.observation, two.observation) and np.array_equal(one.reward, two.reward)


def test_randomised_noisy_simulations_do_not_depend_on_how_many_there_are() -> None:
    alone, together = Sim(cart(**RICH, horizon=7), 1, seed=3), Sim(cart(**RICH, horizon=7), 6)
    assert np.array_equal(alone.reset()[0], together.reset()[3])
    for action in np.random.default_rng(0).uniform(-1, 1, (30, 6, 1)):
        one, many = alone.step(action[3:4]), together.step(action)
        assert np.array_equal(one.observation[0], many.observation[3])
        assert (0 in one.final) == (3 in many.final)
        assert np.array_equal(one.final.get(0, 0), many.final.get(3, 0))


def test_noise_has_the_deviation_that_was_asked() -> None:
    sim = Sim(cart(sensors=(sensors.noise({"v": 0.1}),), horizon=1000), 50)
    sim.reset()
    seen = np.stack([sim.step(np.zeros((50, 1))).observation for _ in range(100)])
    assert np.array_equal(seen[-1, :, 0], sim.qpos[:, 0])
    assert abs(seen[:, :, 1].std() - 0.1) < 0.005 and abs(seen[:, :, 1].mean()) < 0.005


def test_a_bias_stays_through_an_episode_and_changes_with_the_next() -> None:
    sim = Sim(cart(sensors=(sensors.bias({"v": 0.1}),), horizon=5), 4)
    bias = [sim.reset()[:, 1] - sim.qvel[:, 0]]
    for _ in range(7):
        bias.append(sim.step(pushed(4)).observation[:, 1] - sim.qvel[:, 0])
    assert np.allclose(bias[0], bias[4], atol=1e-15) and np.allclose(bias[5], bias[7], atol=1e-15)
    assert (np.abs(bias[0] - bias[5]) > 1e-6).all()


def test_a_delayed_observation_is_the_one_of_some_steps_ago_and_never_of_the_last_episode() -> None:
    plain, late = Sim(cart(horizon=8), 3), Sim(cart(horizon=8, sensors=(sensors.delay(2, 2, "x"),)), 3)
    plain.reset()
    truth, seen = [plain.qpos[:, 0].copy()], [late.reset()[:, 0]]
    assert np.array_equal(truth[0], seen[0])
    for k in range(1, 8):
        one, two = plain.step(pushed(3)), late.step(pushed(3))
        truth.append(one.observation[:, 0])
        seen.append(two.observation[:, 0])
        assert np.array_equal(one.observation[:, 1], two.observation[:, 1])
        assert np.array_equal(seen[k], truth[max(k - 2, 0)])
    last = late.step(pushed(3))
    assert np.array_equal([last.final[i][0] for i in range(3)], truth[6])
    assert np.array_equal(last.observation[:, 0], late.qpos[:, 0])


def test_a_lost_reading_is_the_last_one() -> None:
    sim = Sim(cart(sensors=(sensors.dropout(0.5, "x"),), horizon=1000), 200)
    before = sim.reset()[:, 0]
    after = sim.step(pushed(200)).observation
    lost = after[:, 0] == before
    assert 60 < lost.sum() < 140
    assert np.array_equal(after[~lost, 0], sim.qpos[~lost, 0]) and np.array_equal(after[:, 1], sim.qvel[:, 0])


def test_readings_come_in_steps() -> None:
    sim = Sim(cart(sensors=(sensors.resolution({"x": 0.01}),)), 4)
    seen = sim.reset()[:, 0]
    assert np.allclose(seen, np.round(sim.qpos[:, 0], 2), atol=1e-15) and not np.array_equal(seen, sim.qpos[:, 0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: randomise.mass(2.0, 1.0), "0 <= low <= high, not 2.0..1.0"),
        (lambda: randomise.friction(-1.0, 1.0), "0 <= low <= high"),
        (lambda: randomise.push("cart", (0, 1), 1), "0 < low <= high"),
        (lambda: sensors.delay(3, 1), "0 <= low <= high"),
        (lambda: sensors.dropout(1.0), "0 <= p < 1"),
        (lambda: Sim(cart(sensors=(sensors.noise({"tip": 1.0}),))), "sensor 'cart' .* raised KeyError: 'tip'"),
        (lambda: Sim(cart(randomise=(randomise.mass(1, 2, "wing"),))), "randomise 'cart' .*wing"),
    ],
)
def test_what_cannot_be_is_refused(make, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        make()


STRESSED = {"body_mass": ("body", 0.25), "geom_friction": ("geom", 0.25), "actuator_gainprm": ("actuator", 0.1)}


@pytest.mark.parametrize(
    ("name", "field", "thing", "own"),
    [
        ("pick-place", "body_mass", "block", (0.5, 2.0)),
        ("pick-place", "geom_friction", "block", (0.6, 1.2)),
        ("drone-hover", "body_mass", "drone", (0.9, 1.1)),
        ("drone-hover", "actuator_gainprm", "front_left", (0.95, 1.05)),
        ("go1-velocity", "body_mass", "trunk", (0.9, 1.2)),
        ("go1-velocity", "geom_friction", "FR", (0.6, 1.6)),
        ("go1-velocity", "actuator_gainprm", "FR_calf", (0.9, 1.1)),
        ("lane-driving", "body_mass", "ego", (0.9, 1.2)),
    ],
)
def test_stress_comes_on_top_of_what_a_task_randomises(name: str, field: str, thing: str, own: tuple) -> None:
    """Episode after episode the same seed's own factor, times one of the stress within its range."""
    task, (kind, share) = load_task(name), STRESSED[field]
    plain, hard = Sim(task, 32), Sim(stressed(task, 1.0), 32)
    row = getattr(plain.model, kind)(thing).id
    nominal = getattr(plain.model, field)[row].flat[0]
    for begin in (0, 1000):
        for sim in (plain, hard):
            sim.reset(list(range(begin, begin + 32)))
        before, after = (sim.field(field)[:, row].reshape(32, -1)[:, 0] for sim in (plain, hard))
        assert (before >= own[0] * nominal - 1e-9).all() and (before <= own[1] * nominal + 1e-9).all()
        factor = after / before
        assert factor.min() >= 1 - share - 1e-9 and factor.max() <= 1 + share + 1e-9
        assert np.ptp(factor) > share
