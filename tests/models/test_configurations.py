"""Random configurations of every family compute what transformers computes.

`make test-models`; STEPPO_PEER_PYTHON names another interpreter that has torch
and transformers.
STEPPO_CONFIGURATIONS is the number of configurations of each family, and
STEPPO_SEED what they are drawn with.
"""

import collections
import json
import os
import pathlib
import random
import re
import subprocess

import families
import jax.numpy as jnp
import numpy as np
import pytest
import random_configs
import safetensors.numpy

from steppo_jax.models import transformer
from steppo_jax.models.config import FULL
from steppo_jax.models.formats import hf_config, hub

pytestmark = pytest.mark.models
COUNT = int(os.environ.get("STEPPO_CONFIGURATIONS", "200"))
SEED = os.environ.get("STEPPO_SEED", "0")
ROOT = pathlib.Path(__file__).parents[2]
PEER = ROOT / "tests" / "support" / "models" / "peer_logits.py"


def run_peer(python, folder):
  """Runs transformers over the folders; returns its releases."""
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [python, PEER, folder], check=True, capture_output=True, text=True,
    env=environment | {"CUDA_VISIBLE_DEVICES": ""},
  )  # fmt: skip
  return done.stdout.strip()


def attend(q, k, v, window=FULL):
  """Attention of one text, as written in the papers.

  In float64: scores of 25, which random weights have, would be rounded in
  another way than in torch and take logits apart by 4e-5.
  """
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  k, v = (np.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
  score = np.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
  behind = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])
  score = np.where((behind >= 0) & (behind < window), score, -np.inf)
  weight = np.exp(score - score.max(-1, keepdims=True))
  weight /= weight.sum(-1, keepdims=True)
  out = np.einsum("bhij,bjhd->bihd", weight, v)
  return jnp.asarray(out.astype(np.float32))


def our_logits(model, params):
  """[T, V], operation by operation: compiling each size would take longer."""
  tokens = families.peer_tokens(model.vocab_size)
  positions = np.arange(tokens.shape[1])[None]
  layers = transformer.by_layer(params)
  hidden = transformer.apply_layerwise(
    model, layers, tokens, positions, [attend] * model.num_layers
  )
  return np.asarray(transformer.logits(model, params, hidden)[0])


def distance(folder, logits):
  """Largest difference to what transformers recorded, in parts of it.

  It is at fault beyond 2e-5, or where scores are so sharp that rounding alone
  takes transformers' own float32 further from its float64, beyond three times
  that.
  """
  found = safetensors.numpy.load_file(folder / "logits.safetensors")
  want = found["logits"]
  assert np.ptp(want) > 1e-2
  gap = np.abs(want - logits).max() / np.abs(want).max()
  return gap, gap > max(2e-5, 3 * found["rounding"][0])


def field_of(message):
  """The key of a configuration that a refusal names first."""
  known = re.search(r"[a-z]+(?:_[a-z]+)+|[a-z]+(?==)", message)
  assert known, f"no field is named: {message}"
  return known[0]


@pytest.mark.parametrize("model_type", random_configs.FAMILIES)
def test_random_configurations_are_computed_or_refused(
  model_type, tmp_path, peer
):
  rng = random.Random(f"{model_type} {SEED}")
  for number in range(COUNT):
    config = random_configs.draw(model_type, rng)
    folder = tmp_path / "theirs" / f"{number:04}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
  (tmp_path / "ours").mkdir()
  releases = run_peer(peer, tmp_path / "theirs")

  outcome, refused = collections.Counter(), collections.Counter()
  wrong, largest = [], 0.0
  for folder in sorted((tmp_path / "theirs").iterdir()):
    text = (folder / "config.json").read_text()
    theirs = folder / "error.txt"
    try:
      model = hf_config.from_config(json.loads(text))
    except ValueError as error:
      refused[field_of(str(error).removeprefix("config.json: "))] += 1
      outcome["refused" if not theirs.exists() else "refused by both"] += 1
      continue
    if theirs.exists():
      outcome["refused by transformers alone"] += 1
      continue
    found, params = hub.load(folder)
    assert found == model
    gap, fault = distance(folder, our_logits(model, params))
    largest = max(largest, gap)
    if fault:
      wrong.append((gap, text))
      continue
    outcome["equal"] += 1
    back = tmp_path / "ours" / folder.name
    hub.save(back, model, params)
    assert hf_config.from_config(back) == model
  run_peer(peer, tmp_path / "ours")
  for folder in sorted((tmp_path / "ours").iterdir()):
    error = folder / "error.txt"
    if error.exists():
      wrong.append((error.read_text(), (folder / "config.json").read_text()))
      continue
    want = safetensors.numpy.load_file(
      tmp_path / "theirs" / folder.name / "logits.safetensors"
    )["logits"]
    gap, fault = distance(folder, want)
    if fault:
      wrong.append(("written back", gap, (folder / "config.json").read_text()))
  print(
    f"\n{model_type}: {dict(outcome)}, {len(wrong)} differ; largest distance "
    f"{largest:.1e}; refused for {dict(refused)}; {releases}"
  )
  assert not wrong, "\n".join(str(x) for x in wrong[:5])
  assert outcome["equal"] > COUNT / 4


def test_every_family_is_drawn():
  types = {row.model_type for row in hf_config._FAMILIES.values()}
  assert types == set(random_configs.FAMILIES)
