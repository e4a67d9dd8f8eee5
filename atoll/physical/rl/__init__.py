"""Reinforcement learning for few cores: batched physics, and a learner that does not waste them.

`ppo.py` reads as the algorithm; `networks.py` has what it optimises, `presets.py` the settings measured per task,
`stage.py` what a run calls. `offpolicy.py` is the throughput-first method with a replay buffer.
"""
