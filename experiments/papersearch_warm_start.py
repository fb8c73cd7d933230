"""The policy that the experiments on generated libraries of papers start from.

    python -m steppo_jax train experiments/papersearch_warm_start.py

writes `experiments/weights/papersearch_warm_start.safetensors`, which is
committed. A small decoder, trained from scratch on demonstrations.
"""

import dataclasses

from hotpotqa_warm_start import CONFIG as _QUESTIONS
from hotpotqa_warm_start import WEIGHTS

from steppo_jax.training import config

# Short lists, as a small model reads them.
OPTIONS = ("top=5", "shown=5")

CONFIG = dataclasses.replace(
  _QUESTIONS,
  save_weights=str(WEIGHTS / "papersearch_warm_start.safetensors"),
  demonstrations=dataclasses.replace(
    _QUESTIONS.demonstrations,
    num_episodes=6000,
    env="paper_search",
    options=OPTIONS,
  ),
  env=config.EnvConfig(name="paper_search", size="tiny", options=OPTIONS),
  training=dataclasses.replace(_QUESTIONS.training, num_steps=500),
)
