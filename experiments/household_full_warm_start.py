"""The policy that the runs on ALFWorld's real games start from.

The same decoder as household_warm_start, trained from scratch on 12,000
demonstrations in tiny worlds and in rooms of the real size, in which three
commands in ten are drawn at random.

    python -m steppo_jax train experiments/household_full_warm_start.py

writes `experiments/weights/household_full_warm_start.safetensors`, which is
committed; nothing else needs this run. Hardware: 2 CPU cores. Result:
docs/results.md.
"""

import dataclasses

import household_warm_start

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig

_SMALL = household_warm_start.CONFIG

CONFIG = dataclasses.replace(
  _SMALL,
  save_weights=str(
    household_warm_start.WEIGHTS / "household_full_warm_start.safetensors"
  ),
  demonstrations=dataclasses.replace(
    _SMALL.demonstrations,
    sizes=("tiny", "full"),
    num_episodes=12000,
    noise=0.3,
  ),
  rollout=RolloutConfig(max_steps=15, max_tokens=512),
  packing=PackingConfig(row_length=512),
  training=dataclasses.replace(_SMALL.training, num_steps=2400),
  evaluation=dataclasses.replace(_SMALL.evaluation, every=400),
)
