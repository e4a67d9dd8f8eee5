"""Robots by name, as MjSpec to build a scene on. What they are and where they come from: README.md beside this file."""

from __future__ import annotations

from pathlib import Path

import mujoco

from atoll.physical.sim.model import read_model

HERE = Path(__file__).parent

PANDA_HOME = (0.0, -0.185, 0.0, -2.497, 0.0, 2.312, 0.785)
"""Joint positions, rad: the gripper points down, 0.45 m before the base and 0.25 m above it."""

PANDA_VELOCITY = (2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61)
PANDA_ACCELERATION = (15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0)
"""Limits of the real arm's joints, rad/s and rad/s² (Franka Emika, "Robot and interface specifications")."""

PANDA_STIFFNESS = (1000.0, 1000.0, 750.0, 750.0, 150.0, 150.0, 150.0)
PANDA_DAMPING = (80.0, 80.0, 60.0, 60.0, 9.0, 9.0, 9.0)
"""Of the joints' servos, N m/rad and N m s/rad: critically damped. The published ones are 2 to 20 times as stiff; with
steps of 5 ms they run into the joints' torque limits at every new target, and shake what is held out of the hand."""

GRIPPER_WIDTH = 0.08
"""How far the Panda's gripper opens, m."""


def panda() -> mujoco.MjSpec:
    """Franka Emika Panda with its hand: seven joint position servos, and one whose control is the gripper's opening in
    metres. Gravity is compensated, as the real arm's controller does. The site `gripper` lies between the fingertips,
    z pointing out of the hand. The arm's own parts do not collide with each other; they do with everything whose
    `conaffinity` has bit 1. Of each finger only the flat pad collides: it holds things without turning them out, as the
    finger's convex hull and Menagerie's four small bumps do."""
    spec = read_model(HERE / "panda" / "panda.xml")
    for body in spec.bodies[1:]:
        body.gravcomp = 1
    for geom in spec.geoms:
        kind = geom.classname.name
        solid = kind == "fingertip_pad_collision_1" or (kind == "collision" and geom.meshname != "finger_0")
        geom.contype, geom.conaffinity = int(solid), 0
    hand = spec.body("hand")
    hand.add_site(name="gripper", pos=[0, 0, 0.1034], size=[0.005, 0.005, 0.005], group=4)
    for key in list(spec.keys):
        spec.delete(key)
    for i, (stiffness, damping) in enumerate(zip(PANDA_STIFFNESS, PANDA_DAMPING, strict=True)):
        servo = spec.actuator(f"actuator{i + 1}")
        servo.gainprm[0], servo.biasprm[1:3] = stiffness, [-stiffness, -damping]
    grip = spec.actuator("actuator8")
    grip.name, grip.ctrlrange, grip.forcerange = "gripper", [0, GRIPPER_WIDTH], [-40, 40]
    grip.gainprm[0], grip.biasprm[1:3] = 1000, [-2000, -60]
    return spec
