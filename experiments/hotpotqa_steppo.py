"""StepPO on generated two-hop questions.

    python -m steppo_jax train experiments/hotpotqa_steppo.py

An answer that matches pays 1, a step without a call costs 0.1, and an episode
has 5 steps. Hardware: 2 CPU cores. Time and result: docs/results.md.
"""

import dataclasses

from webshop_steppo import CONFIG as _SHOP
from webshop_steppo import WEIGHTS

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

# Two paragraphs a search, as a small model reads them.
OPTIONS = ("top=2",)

CONFIG = dataclasses.replace(
  _SHOP,
  weights=str(WEIGHTS / "hotpotqa_hasty_start.safetensors"),
  env=config.EnvConfig(
    name="search_qa", size="tiny", invalid_penalty=0.1, options=OPTIONS
  ),
  rollout=RolloutConfig(max_steps=5, max_tokens=256, max_new_tokens=8),
  packing=PackingConfig(row_length=256),
)
