"""Adapters compute what the package peft computes, read and written."""

import json
import os
import pathlib
import shutil
import subprocess

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppo_jax import trees
from steppo_jax.models import lora
from steppo_jax.models import options as models_options
from steppo_jax.models.formats import peft
from steppo_jax.pretrained import sources

pytestmark = pytest.mark.models
ROOT = pathlib.Path(__file__).parents[2]
PEER = ROOT / "tests" / "support" / "models" / "peer_peft.py"
IDS = (np.arange(40)[None] * 37 + 11) % 96
MODULES = ["q_proj", "v_proj", "down_proj"]
# Made by peft of these options, on the base that stands in front.
READ = {
  "qwen3-list": {"r": 3, "lora_alpha": 7, "target_modules": MODULES},
  "llama3-regex": {"target_modules": r".*\.1\..*(k_proj|up_proj)"},
  "smollm2-all": {"r": 2, "target_modules": "all-linear"},
  "gemma3-rslora": {"r": 4, "use_rslora": True, "target_modules": MODULES},
  "qwen2-patterns": {
    "r": 4, "target_modules": MODULES,
    "rank_pattern": {"down_proj": 6, r".*\.0\.self_attn\.q_proj": 1},
    "alpha_pattern": {"layers.1.self_attn.v_proj": 16, "down_proj": 3},
  },
  "qwen3-layers": {"target_modules": MODULES, "layers_to_transform": [1]},
  "llama3-layer": {
    "target_modules": MODULES, "layers_to_transform": 0,
    "layers_pattern": "layers",
  },
  "qwen3-without": {
    "target_modules": MODULES, "exclude_modules": r".*\.0\..*q_proj",
  },
  "qwen2-turned": {"target_modules": MODULES, "fan_in_fan_out": True},
  "smollm2-gaussian": {
    "target_modules": MODULES, "init_lora_weights": "gaussian",
  },
}  # fmt: skip


def run_peer(python, folder):
  np.save(folder / "ids.npy", IDS)
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [python, PEER, folder], capture_output=True, text=True,
    env=environment | {"CUDA_VISIBLE_DEVICES": ""},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


def checkpoint(folder, name):
  """A copy of a committed checkpoint without what was recorded of it."""
  folder.mkdir(parents=True)
  for file in ("config.json", "model.safetensors"):
    shutil.copy(families.ROOT / name / file, folder)


def our_logits(model, params):
  at = np.arange(IDS.shape[1])[None]
  return np.asarray(
    families.jitted(model, params, IDS, at, np.full_like(at, IDS.shape[1]))
  )


def test_what_peft_writes_computes_the_same(peer, tmp_path, capsys):
  for case, options in READ.items():
    checkpoint(tmp_path / case / "base", case.partition("-")[0])
    (tmp_path / case / "lora.json").write_text(json.dumps(options))
  release, worst = run_peer(peer, tmp_path), {}
  for case in READ:
    folder = tmp_path / case
    right = np.load(folder / "logits.npy")
    # Its configuration names the base by a path, as peft found it.
    found = sources.find(folder / "adapter")
    assert found.base.path == folder / "base"
    model, params = sources.load(found, merged=False, dtype=jnp.float32)
    base = our_logits(model, lora.off(params))
    assert np.abs(right - base).max() > 0.05, case
    worst[case] = float(np.abs(our_logits(model, params) - right).max())
    merged = our_logits(*sources.load(found, dtype=jnp.float32))
    np.testing.assert_allclose(merged, right, atol=1e-4, err_msg=case)
  with capsys.disabled():
    print(f"\n{release}: logits of adapters differ by at most {worst}")
  assert max(worst.values()) < 5e-5


def test_peft_computes_the_same_of_what_is_written(peer, tmp_path, capsys):
  ours = {}
  for number, name in enumerate(families.NAMES):
    folder = tmp_path / name
    checkpoint(folder / "base", name)
    model, params = families.checkpoint(name)
    targets = (("layers/*/kernel",), ("layers/q/*", "layers/up/*"))[number % 2]
    config = models_options.LoraConfig(rank=3, alpha=5.0, targets=targets)
    made = lora.add(params, config, jax.random.key(number))
    flat = trees.flatten(made)
    for at, path in enumerate(flat):
      if path.endswith("lora_b"):
        key = jax.random.key(100 + at)
        flat[path] = 0.2 * jax.random.normal(key, flat[path].shape)
    made = trees.unflatten(flat)
    ours[name] = our_logits(model, made)
    assert np.abs(ours[name] - our_logits(model, params)).max() > 0.05
    peft.save(folder / "adapter", model, made, base=str(folder / "base"))
  release = run_peer(peer, tmp_path)
  worst = {
    name: float(np.abs(np.load(tmp_path / name / "logits.npy") - mine).max())
    for name, mine in ours.items()
  }
  with capsys.disabled():
    print(f"\n{release}: logits of written adapters differ by {worst}")
  assert max(worst.values()) < 5e-5
