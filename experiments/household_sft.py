"""The control: ten more minutes of supervised training, no RL.

    python -m steppo_jax train experiments/household_sft.py

The same policy, demonstrations and evaluation as household_steppo.
"""

import dataclasses

import household_steppo
import household_warm_start

from steppo_jax.learner.options import SupervisedConfig
from steppo_jax.training import config

CONFIG = dataclasses.replace(
  household_warm_start.CONFIG,
  weights=household_steppo.CONFIG.weights,
  save_weights=None,
  minutes=10.0,
  training=SupervisedConfig(
    num_steps=3000, rows_per_step=8, learning_rate=1e-3
  ),
  evaluation=config.EvalConfig(every=300, episodes=500),
)
