"""What no memory is left for is named, with the options that change it."""

import contextlib
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from steppo_jax import types
from steppo_jax.models import mesh, out_of_memory, transformer
from steppo_jax.models.formats import hub, placing
from steppo_jax.sampler import cache, hand_over, options, programs
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.training import run, train

REFUSAL = "RESOURCE_EXHAUSTED: Attempting to allocate 3.00G. 1.20G are free"


def refuse(*_, **__):
  raise jax.errors.JaxRuntimeError(REFUSAL)


class Refused:
  """An array whose program had no memory, which nobody knows yet."""

  shape, dtype = (2,), np.dtype("float32")

  def block_until_ready(self):
    refuse()


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


def test_what_this_machine_refuses_is_named(monkeypatch):
  # A pebibyte: the error is XLA's own, and not one of these tests.
  large = jax.jit(lambda _: jnp.zeros((2**48,)))
  monkeypatch.setattr(hand_over, "_program", lambda *_: large)
  with pytest.raises(RuntimeError) as found:
    make_engine().set_params(worlds.policy(), 0)
  assert "while giving the sampler" in str(found.value)
  assert "JAX says: RESOURCE_EXHAUSTED" in str(found.value)


def test_what_is_refused_late_is_named_for_what_it_was(monkeypatch):
  # A copy of the weights that is refused while Python goes on, and a program
  # that finds it so.
  monkeypatch.setattr(hand_over, "_program", lambda *_: lambda _: [Refused()])
  monkeypatch.setattr(
    programs.Shared, "get", lambda *_: lambda p, *_: jax.block_until_ready(p)
  )
  engine = make_engine()
  engine.set_params(worlds.policy(), 1)
  prompt = np.arange(5, dtype=np.int32)
  engine.submit([types.Request("a", prompt, (0,), 4, 1.0)])
  with refused("while giving the sampler the policy's weights: raise "):
    engine.poll()
  # Sampling that is itself refused stays what it is.
  monkeypatch.undo()
  monkeypatch.setattr(programs.Shared, "get", lambda *_: refuse)
  engine = make_engine()
  engine.set_params(worlds.policy(), 1)
  engine.submit([types.Request("a", prompt, (0,), 4, 1.0)])
  with refused("sampling (prefill): ", "sampler.num_slots"):
    engine.poll()


def made_run(**parts):
  """A run of which only these parts are there."""
  engine = python_types.SimpleNamespace(
    held={"weights": jnp.zeros((64, 2**10)), "cache": None}
  )
  made = object.__new__(run.Run)
  made.config = python_types.SimpleNamespace(
    learner=python_types.SimpleNamespace(microbatch_rows=4),
    rollout=python_types.SimpleNamespace(staleness=1),
  )
  made.players = made._judges = python_types.SimpleNamespace(engine=engine)
  made.rollouts = python_types.SimpleNamespace(
    held=lambda: {"weights that wait for it": jnp.zeros((3, 2**18))},
    set_policy=refuse,
  )
  made.policy, made.reference, made.teacher = {}, None, None
  for name, part in parts.items():
    setattr(made, name, part)
  return made


STATE = python_types.SimpleNamespace(
  policy={"table": jnp.zeros(2**8)}, policy_optimizer=()
)


def test_a_hand_over_is_told_with_what_was_held():
  refusal = (
    "in the hand-over after update 3",
    "(a device held policy 1.0 KiB, sampler's weights 256.0 KiB, ",
    "sampler's weights that wait for it 3.00 MiB)",
    "rollout.staleness=0",
  )
  with refused("giving the sampler", *refusal, "sampler.tensor"):
    rollouts = made_run().rollouts
    rollouts.set_policy = lambda *_: hand_over.arrived(Refused())
    train._hand_over(made_run(rollouts=rollouts), STATE, 3)
  # What no part explains is named by the part itself.
  with refused(refusal[0].removeprefix("in "), *refusal[1:]):
    train._hand_over(made_run(), STATE, 3)


def test_an_evaluation_is_told_with_what_was_held():
  made = made_run()
  sample = out_of_memory.explained("sampling", "lower sampler.num_slots")
  made.evaluate = sample(refuse)
  with refused(
    "sampling, in the evaluation after update 2 (a device held policy ",
    "lower sampler.num_slots, or take rollout.staleness=0",
  ):
    train._evaluate(made, STATE, 2)


def test_a_device_holds_its_part_of_what_is_split():
  split = mesh.make_model_mesh(data=1, fsdp=8, tensor=1)
  params = {"q": {"kernel": jnp.zeros((2, 64, 64))}, "scale": jnp.zeros(64)}
  whole = mesh.put(params, mesh.placements(split, params))
  found = out_of_memory.on_devices(whole)
  assert found == dict.fromkeys(jax.devices(), 4 * (2 * 64 * 64 // 8 + 64))
  # Also once a program was given them for its own.
  jax.tree.map(lambda x: x.delete(), whole)
  assert out_of_memory.on_devices(whole) == found
  assert out_of_memory.on_devices((None, "text")) == {}


def test_states_and_updates_are_named():
  learner = python_types.SimpleNamespace(init=refuse, update=refuse)
  made = made_run(learner=learner)
  with refused("the learner's state", "mesh.fsdp", "learner.optimizer"):
    made.start()
  with refused(
    "update 3", "learner.microbatch_rows=4", "learner.remat", "compute",
    "4 (a device held sampler's weights ",
  ):  # fmt: skip
    train._learn(made, None, None, 3)
