"""StepPO on ALFWorld's real games, from the same small decoder.

    python -m steppo_jax train experiments/alfworld_steppo.py \
      env.data_dir=PATH

PATH holds the compact files or an ALFWorld release (`json_2.1.1`). Trains on
the 3,553 games of the train split and evaluates on valid_seen. Hardware: 2 CPU
cores. Time and result: docs/results.md. The policy that came of it is
`weights/alfworld_steppo.safetensors`.
"""

import dataclasses

import household_steppo

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

# One game in twenty is won at the start: with a penalty of 0.1 avoiding refused
# commands is all that is learned. A policy that repeats what was refused loses
# the game instead, which costs the more the more games it wins.
CONFIG = dataclasses.replace(
  household_steppo.CONFIG,
  weights=str(
    household_steppo.WEIGHTS / "household_full_warm_start.safetensors"
  ),
  num_updates=300,
  env=config.EnvConfig(name="alfworld", invalid_penalty=0.01),
  rollout=RolloutConfig(
    max_steps=30, max_tokens=512, temperature=0.5, max_invalid=5
  ),
  packing=PackingConfig(row_length=512),
  learner=dataclasses.replace(
    household_steppo.LEARNER, learning_rate=2.5e-4, warmup_steps=60
  ),
  evaluation=config.EvalConfig(every=50, episodes=140, split="valid_seen"),
)
