"""StepPO on generated queries for papers.

    python -m steppo_jax train experiments/papersearch_steppo.py

A step pays the three highest scores of its new papers, a repeated query or a
bad expansion costs 0.5, and an episode has 5 steps. Hardware: 2 CPU cores. Time
and result: docs/results.md.
"""

import dataclasses

from hotpotqa_steppo import CONFIG as _QUESTIONS
from webshop_steppo import WEIGHTS

from steppo_jax.training import config

# Short lists, as a small model reads them.
OPTIONS = ("top=5", "shown=5")

CONFIG = dataclasses.replace(
  _QUESTIONS,
  weights=str(WEIGHTS / "papersearch_warm_start.safetensors"),
  env=config.EnvConfig(
    name="paper_search", size="tiny", invalid_penalty=0.1, options=OPTIONS
  ),
)
