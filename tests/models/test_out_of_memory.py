"""What no memory is left for is named, with the options that change it."""

import contextlib
import types as python_types

import jax
import numpy as np
import pytest
import worlds

from steppo_jax.models import out_of_memory, transformer
from steppo_jax.models.formats import hub, placing
from steppo_jax.sampler import cache, hand_over, options, programs
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.training import run, train

REFUSAL = "RESOURCE_EXHAUSTED: Attempting to allocate 3.00G. 1.20G are free"


def refuse(*_, **__):
  raise jax.errors.JaxRuntimeError(REFUSAL)


def make_engine():
  return engine_lib.SlotEngine(
    worlds.model(), options.SamplerConfig(num_slots=2, prefill_lengths=(16,)),
    context=64, max_new_tokens=8, end_of_turn_id=0, seed=0,
  )  # fmt: skip


@contextlib.contextmanager
def refused(*words):
  """Holds that the error has these words, and XLA's own at its end."""
  with pytest.raises(RuntimeError, match="out of memory while ") as found:
    yield
  for word in words:
    assert word in str(found.value)
  assert str(found.value).endswith(f"JAX says: {REFUSAL}")
  assert isinstance(found.value.__cause__, jax.errors.JaxRuntimeError)


def test_other_errors_stay_what_they_are():
  fault = jax.errors.JaxRuntimeError("INTERNAL: a fault")
  for error in (fault, ValueError(REFUSAL)):
    with (
      pytest.raises(type(error)) as found,
      out_of_memory.explained("reading", "take less"),
    ):
      raise error
    assert found.value is error
  # What is explained is not explained anew by what stands around it.
  with (
    refused("while reading: take less;"),
    out_of_memory.explained("working", "rest"),
    out_of_memory.explained("reading", "take less"),
  ):
    refuse()


def test_reading_weights_is_named(tmp_path, monkeypatch):
  model = transformer.ModelConfig(
    vocab_size=64, width=16, num_layers=1, num_heads=1, num_kv_heads=1,
    head_dim=16, mlp_width=16,
  )  # fmt: skip
  params = jax.tree.map(
    lambda x: np.zeros(x.shape, np.float32), transformer.abstract_params(model)
  )
  hub.save(tmp_path / "model", model, params)
  monkeypatch.setattr(placing, "_fill", refuse)
  with refused("reading ", "mesh.fsdp", "sampler.tensor"):
    hub.load(tmp_path / "model")


def test_a_cache_that_is_too_large_is_named(monkeypatch):
  monkeypatch.setattr(cache, "empty", refuse)
  with refused("2 slots of 64 tokens", "sampler.num_slots", "sampler.tensor"):
    make_engine()


def test_handing_over_and_sampling_are_named(monkeypatch):
  engine = make_engine()
  monkeypatch.setattr(hand_over, "_program", lambda *_: refuse)
  with refused("the policy's weights", "sampler.tensor", "compute=bfloat16"):
    engine.set_params(worlds.policy(), 0)
  monkeypatch.undo()
  engine.set_params(worlds.policy(), 0)
  monkeypatch.setattr(programs.Shared, "get", refuse)
  with refused("compiling the sampler", "sampler.num_slots"):
    engine.warm_up()


def test_states_and_updates_are_named():
  config = python_types.SimpleNamespace(
    learner=python_types.SimpleNamespace(microbatch_rows=4)
  )
  learner = python_types.SimpleNamespace(init=refuse, update=refuse)
  made = object.__new__(run.Run)
  made.config, made.learner, made.policy = config, learner, {}
  made.reference = made.teacher = None
  with refused("the learner's state", "mesh.fsdp", "learner.optimizer"):
    made.start()
  with refused(
    "update 3", "learner.microbatch_rows=4", "learner.remat", "compute"
  ):
    train._learn(made, None, None, 3)
