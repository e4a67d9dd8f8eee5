"""Physical AI: from a scene to a served policy. Each folder is a stage, in the order that data flows:

sim (environments) -> synth (data sets) -> rl, imitation (policies) -> validate (the gate) -> serve (endpoints).

Everything here needs the extra `physical`; modules import MuJoCo and torch freely, and nothing imports them at start.
"""
