"""The policy that the experiments on generated libraries of papers start from.

    python -m steppo_jax train experiments/papersearch_warm_start.py

writes `experiments/weights/papersearch_warm_start.safetensors`, which is
committed. A small decoder, trained from scratch on demonstrations.
"""

import pathlib

from steppo_jax import config
from steppo_jax.data.demonstrations import Demonstrations
from steppo_jax.packing import PackingConfig
from steppo_jax.rollout.loop import RolloutConfig
from steppo_jax.supervised import SupervisedConfig

WEIGHTS = pathlib.Path(__file__).parent / "weights"

# Short lists, as a small model reads them.
OPTIONS = ("top=5", "shown=5")

CONFIG = config.SupervisedRun(
  save_weights=str(WEIGHTS / "papersearch_warm_start.safetensors"),
  tokenizer="worlds",
  model="micro",
  demonstrations=Demonstrations(
    split="train",
    sizes=("tiny",),
    num_episodes=6000,
    seed=0,
    env="paper_search",
    options=OPTIONS,
  ),
  env=config.EnvConfig(name="paper_search", size="tiny", options=OPTIONS),
  rollout=RolloutConfig(max_steps=5, max_tokens=256, max_new_tokens=8),
  packing=PackingConfig(row_length=448),
  training=SupervisedConfig(num_steps=500, rows_per_step=8),
  evaluation=config.EvalConfig(every=500, episodes=500),
)
