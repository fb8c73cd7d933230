"""All devices sample, each on its own, and the answers are those of one."""

import re

import jax
import numpy as np
import pytest
import worlds
from marks import some

from steppo_jax import types
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options, slots, split

COLLECTIVE = re.compile(
  r"all-(gather|reduce|to-all)|reduce-scatter|collective|send|recv"
)


def make(devices, first=0, tensor=1, slots=16):
  made = engine_lib.SlotEngine(
    worlds.model(),
    options.SamplerConfig(
      num_slots=slots, prefill_lengths=(16,), tensor=tensor
    ),
    context=worlds.CONTEXT,
    max_new_tokens=8,
    end_of_turn_id=worlds.tokenizer().end_of_turn_id,
    seed=0,
    devices=jax.local_devices()[first : first + devices],
  )
  made.set_params(worlds.policy(), 0)
  return made


def play(engine, groups=7):
  """Groups of two over three turns, of which fewer and fewer go on."""
  rng = np.random.default_rng(0)
  tasks = [rng.integers(3, 400, 12 + n) for n in range(groups)]
  prompts = [task for task in tasks for _ in range(2)]
  found = {}
  for turn in range(3):
    live = range(0, len(prompts), 1 + turn)
    answers = engine.generate(
      [
        types.Request(str(n), prompts[n].astype(np.int32), (n, turn), 8, 1.0)
        for n in live
      ]
    )
    for n, answer in zip(live, answers, strict=True):
      found[n, turn] = answer
      seen = np.random.default_rng(n).integers(3, 400, 5)
      prompts[n] = np.concatenate([prompts[n], answer.response_ids, seen])
  return found


@pytest.fixture(scope="module")
def alone():
  return play(make(1))


def answers_as(alone, engine):
  found = play(engine)
  for key, want in alone.items():
    np.testing.assert_array_equal(found[key].response_ids, want.response_ids)
    np.testing.assert_allclose(
      found[key].behaviour_logp, want.behaviour_logp, atol=1e-5
    )
  # The second of each group takes what the first has read.
  assert engine.counters.copied_tokens == sum(11 + n for n in range(7))


@pytest.mark.parametrize("devices", some(4, slow=[2, 8]))
def test_devices_answer_as_one_does_and_say_nothing_to_each_other(
  devices, alone, monkeypatch
):
  monkeypatch.setitem(split.LEAST_SLOTS, "cpu", 2)
  engine = make(devices)
  answers_as(alone, engine)
  compiled = engine._device._shared._found
  assert {name for name, _ in compiled} == {"prefill", "copy", "sample"}
  for (name, _), program in compiled.items():
    text = program.result().as_text()
    assert f"num_partitions={devices}" in text
    assert not COLLECTIVE.search(text), name


@pytest.mark.parametrize(
  ("devices", "tensor"),
  some((8, 4), slow=[(2, 2), (4, 2), (8, 2), (4, 4)]),
)
def test_devices_that_share_a_model_answer_as_one_does(
  devices, tensor, alone, monkeypatch
):
  # Of two key heads four devices have one each, twice.
  monkeypatch.setitem(split.LEAST_SLOTS, "cpu", 2)
  engine = make(devices, tensor=tensor)
  answers_as(alone, engine)
  device, model = engine._device, worlds.model()
  assert dict(device.mesh.shape) == {
    "data": devices // tensor,
    "tensor": tensor,
  }
  # No device holds more than its part of a matrix, a table and the cache.
  for name in ("q", "o", "up", "down"):
    kernel = device.params["layers"][0][name]["turned"]
    (size,) = {x.data.size for x in kernel.addressable_shards}
    assert size * tensor == kernel.size
  table = device.params["embed"]["embedding"]
  (rows,) = {x.data.shape[0] for x in table.addressable_shards}
  assert rows * tensor < model.vocab_size + tensor * 64
  heads = {
    x.data.shape[2] for x in device._cache.layers[0][1].addressable_shards
  }
  assert heads == {max(1, model.num_kv_heads // tensor)}


@pytest.mark.slow
def test_a_device_that_is_not_the_first_answers_as_that_does(
  alone, monkeypatch
):
  monkeypatch.setitem(split.LEAST_SLOTS, "cpu", 16)
  engine = make(1, first=5)
  last = jax.devices()[5]
  found = play(engine)
  for key, want in alone.items():
    np.testing.assert_array_equal(found[key].response_ids, want.response_ids)
    np.testing.assert_array_equal(
      found[key].behaviour_logp, want.behaviour_logp
    )
  device = engine._device
  held = jax.tree.leaves((device.params, device._cache, device.turns))
  assert {d for x in held for d in x.devices()} == {last}


@pytest.mark.slow
def test_devices_of_one_slot_each_answer_as_one_of_eight(monkeypatch):
  """As on chips: the members of a group read their prompt on a device each."""
  alone = play(make(1, slots=8), groups=4)
  monkeypatch.setitem(split.LEAST_SLOTS, "cpu", 1)
  engine = make(8, slots=8)
  assert engine._device.parts == 8
  found = play(engine, groups=4)
  assert engine.counters.copied_tokens == 0
  for key, want in alone.items():
    np.testing.assert_array_equal(found[key].response_ids, want.response_ids)


@pytest.mark.parametrize(
  ("num_slots", "devices", "shared_by", "cpu", "tpu"),
  [
    (128, 8, 1, 8, 8),
    # Chips that have room for few slots all have some.
    (16, 8, 1, 2, 8),
    (8, 8, 1, 1, 8),
    (20, 4, 1, 2, 4),
    (15, 8, 1, 1, 5),
    (2, 8, 1, 1, 2),
    (24, 2, 1, 2, 2),
    (30, 4, 1, 3, 3),
    (8, 8, 2, 1, 4),
  ],
)
def test_slots_are_split_into_equal_parts(
  num_slots, devices, shared_by, cpu, tpu
):
  for platform, parts in (("cpu", cpu), ("tpu", tpu), ("gpu", tpu)):
    found = split.parts_of(num_slots, devices, shared_by, platform)
    assert found == parts
  mesh = split.mesh_of(num_slots, jax.devices()[:devices], shared_by)
  assert (1 if mesh is None else mesh.shape["data"]) == cpu


def test_chips_that_lie_idle_are_told_of_once(caplog):
  split.warn_of_idle.cache_clear()
  for _ in range(2):
    split.warn_of_idle(8, 8, 1, "tpu")  # All work.
    split.warn_of_idle(8, 8, 1, "cpu")  # One works, with all of the cores.
    split.warn_of_idle(15, 8, 1, "tpu")
    split.warn_of_idle(4, 8, 3, "gpu")
  said = [record.getMessage() for record in caplog.records]
  assert said == [
    "sampler.num_slots=15 of this process is sampled on 5 of its 8 devices: "
    "take a multiple of 8 for sampler.num_slots",
    "sampler.num_slots=4 of this process is sampled on 6 of its 8 devices: "
    "take a multiple of 2 for sampler.num_slots, and for sampler.tensor what "
    "divides the number of devices",
  ]


def test_a_group_goes_where_there_is_most_room_and_spills_over():
  known = slots.Slots(6, 24, parts=2)
  plan = lambda name, prompt: known.plan(name, np.array(prompt))
  assert plan("a0", [1, 2, 3, 4]).slot == 0
  # Another prompt goes to the other device, the same to this one.
  assert plan("b0", [5, 6, 7, 8]).slot == 3
  assert plan("a1", [1, 2, 3, 4])[:3] == (1, 0, 3)
  assert plan("a2", [1, 2, 3, 4])[:3] == (2, 0, 3)
  # The first device is full: read anew, then copied there.
  assert plan("a3", [1, 2, 3, 4])[:3] == (4, None, 0)
  assert plan("a4", [1, 2, 3, 4])[:3] == (5, 4, 3)
