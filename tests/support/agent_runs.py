"""Runs of a tiny released model whose episodes agents play."""

import dataclasses
import json
import pathlib
import re

import released_models
import small_runs

from steppo_jax.models import transformer
from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout import options as rollout_options
from steppo_jax.sampler.options import SamplerConfig
from steppo_jax.tokenizer import loading
from steppo_jax.training import config

ROOT = pathlib.Path(__file__).parents[2]
MODEL = transformer.ModelConfig(
  vocab_size=512, width=32, num_layers=2, num_heads=2, num_kv_heads=1,
  head_dim=16, mlp_width=48,
)  # fmt: skip


def model(folder):
  """A released model of random weights, with a chat template."""
  return released_models.write(folder, MODEL)


def as_transformers_reads(folder):
  """Rewrites the tokenizer's options as transformers 5 reads them."""
  path = folder / "tokenizer_config.json"
  facts = json.loads(path.read_text())
  facts |= {
    "pad_token": facts["pad_token"]["content"],
    "tokenizer_class": "PreTrainedTokenizerFast",
  }
  path.write_text(json.dumps(facts))


def programs(folder):
  """Writes the programs of the page on agents; returns their names."""
  text = (ROOT / "docs" / "agents.md").read_text()
  found = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, flags=re.S)
  for name, code in found:
    (folder / name).write_text(code)
  return [name for name, _ in found]


def options(folder, tmp_path, *, source="agents", engine="internal", **agents):
  """Updates on two short episodes each."""
  small = small_runs.small_config(tmp_path)
  return dataclasses.replace(
    small,
    weights=str(folder),
    tokenizer=loading.OWN_TOKENIZER,
    num_updates=2,
    tasks_per_update=2,
    rollout=dataclasses.replace(
      small.rollout, source=source, engine=engine, max_steps=3, max_tokens=1024,
      max_new_tokens=8,
    ),
    agents=rollout_options.AgentConfig(processes=2, seconds=120.0, **agents),
    sampler=SamplerConfig(num_slots=2, prefill_lengths=(512,), burst=8),
    packing=PackingConfig(row_length=1024),
    learner=dataclasses.replace(
      small.learner, num_minibatches=1, critic_warmup=0, critic_trunk="policy"
    ),
    evaluation=config.EvalConfig(every=9, episodes=1),
  )  # fmt: skip
