"""A critic that adds adapters of its own to the policy's layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import learner_runs
import numpy as np
import pytest
import whole_updates
import worlds

from steppo_jax import trees
from steppo_jax.learner import learner, options
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.models import heads, lora, mesh, transformer
from steppo_jax.models.options import LoraConfig

LORA = LoraConfig(rank=2, targets=("layers/q/kernel", "layers/down/kernel"))
CONFIG = dataclasses.replace(
  whole_updates.CONFIG, critic_trunk="policy", critic_lora=LORA
)
TWO = dataclasses.replace(worlds.model(), num_layers=2)


def spec_of(config=CONFIG, row="steppo", model=None, devices=1):
  where = mesh.make_mesh(devices)
  return learner.make_spec(
    model or worlds.model(), learner_runs.row(row), config, where,
    num_updates=4, seed=0,
  )  # fmt: skip


@functools.cache
def deep():
  return transformer.init(TWO, jax.random.key(0))


def values(spec, critic, policy, rows):
  return jax.jit(spec.values)(critic, policy, rows)


def step(spec, state, batch, reference=None):
  run = jax.jit(functools.partial(update_lib.update, spec))
  return run(state, reference, batch)


def test_at_first_they_change_nothing():
  spec = spec_of()
  state = learner.init(spec, worlds.policy())
  rows = jax.tree.map(lambda x: x[0], whole_updates.batch().tokens)
  head = {"kernel": jnp.ones(worlds.model().width), "bias": jnp.zeros(())}
  made = state.critic | {"head": head}
  plain = dataclasses.replace(CONFIG, critic_lora=LoraConfig())
  want = values(spec_of(plain), {"head": head}, worlds.policy(), rows)
  found = values(spec, made, worlds.policy(), rows)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
  # And later they do, with the scale that they were made with.
  flat = {
    name: x + 0.1 if name.endswith("lora_b") else x
    for name, x in made["adapters"].items()
  }
  moved = values(spec, made | {"adapters": flat}, worlds.policy(), rows)
  policy = lora.join(
    lora.with_scale(flat, LORA), trees.flatten(worlds.policy())
  )
  same = values(spec_of(plain), {"head": head}, policy, rows)
  np.testing.assert_allclose(moved, same, rtol=1e-5, atol=1e-5)
  assert np.abs(moved - want).max() > 1e-2


def test_adapters_and_heads_are_all_that_is_kept_and_moved():
  spec = spec_of(dataclasses.replace(CONFIG, learning_rate=0.0))
  state = learner.init(spec, worlds.policy())
  batch = whole_updates.batch()
  assert not spec.keeps(state.critic, state.policy, batch)
  names = set(state.critic["adapters"])
  assert names == {
    f"layers/{of}/lora_{part}" for of in ("q", "down") for part in "ab"
  }
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  # Adam's two moments, and its counts.
  assert count(state.critic_optimizer) <= 2 * count(state.critic) + 4
  assert count(state.critic) < count(state.policy) / 10
  after, found = step(spec, state, batch)
  after, found = step(spec, after, batch)
  assert np.isfinite(found["critic/grad_norm"][0])
  for name, x in after.critic["adapters"].items():
    assert np.abs(x - state.critic["adapters"][name]).max() > 0, name
  # No gradient of the critic reaches the layers that it reads.
  for x, y in zip(
    *map(jax.tree.leaves, (state.policy, after.policy)), strict=True
  ):
    np.testing.assert_array_equal(x, y)


def test_the_first_layers_are_enough():
  config = dataclasses.replace(CONFIG, critic_layers=1)
  spec = spec_of(config, model=TWO)
  critic = learner.init(spec, deep()).critic
  assert {x.shape[0] for x in critic["adapters"].values()} == {1}
  rows = jax.tree.map(lambda x: x[0], whole_updates.batch().tokens)
  head = {"kernel": jnp.ones(TWO.width), "bias": jnp.zeros(())}
  own = heads.init_critic(deep(), own_trunk=True, num_layers=1)
  copied = spec_of(whole_updates.CONFIG, model=TWO)
  want = values(copied, own | {"head": head}, None, rows)
  found = values(spec, critic | {"head": head}, deep(), rows)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["ppo", "vetta"])
def test_every_clock_can_be_learned(row):
  spec = spec_of(row=row)
  state = learner.init(spec, worlds.policy())
  after, found = step(spec, state, whole_updates.batch(), worlds.policy(1))
  assert np.isfinite(found["critic/value"][0])
  moved = after.critic["adapters"]["layers/down/lora_b"]
  # The first optimizer step moves the head, whose weights were 0; the second
  # of the two mini-batches moves B.
  assert np.abs(moved).max() > 0


@pytest.mark.slow
def test_a_policy_with_adapters_shares_its_frozen_matrices():
  config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2))
  spec = spec_of(config)
  state = learner.init(spec, worlds.policy())
  after, _ = step(spec, state, whole_updates.batch())
  frozen = lora.off(state.policy), lora.off(after.policy)
  for a, b in zip(*map(jax.tree.leaves, frozen), strict=True):
    np.testing.assert_array_equal(a, b)
  # Values are of the frozen matrices: the policy's adapters are not read.
  rows = jax.tree.map(lambda x: x[0], whole_updates.batch().tokens)
  for policy in (after.policy, lora.off(after.policy)):
    found = values(spec, after.critic, policy, rows)
    np.testing.assert_array_equal(
      found, values(spec, after.critic, state.policy, rows)
    )


@pytest.mark.slow
def test_they_may_be_split_over_devices():
  split = mesh.make_model_mesh(data=1, fsdp=8, tensor=1)
  found = []
  for where in (mesh.make_mesh(1), split):
    made = learner.Learner(
      worlds.model(), learner_runs.row("steppo"), CONFIG, where,
      num_updates=4, seed=0,
    )  # fmt: skip
    batch = learner_state.put_batch(learner_runs.packed(), where)
    state, _ = made.update(made.init(worlds.policy()), None, batch)
    found.append(jax.device_get(state.critic))
  learner_runs.close(*found)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"critic_lora": LORA}, r"critic_lora\.rank=2 adds adapters"),
    (
      {"critic_trunk": "policy", "critic_layers": 1},
      r"critic_layers=1 must be at least 1",
    ),
  ],
)
def test_what_does_not_go_together_is_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    options.LearnerConfig(**changes)


def test_a_critic_with_adapters_needs_to_be_told_of_them():
  critic = learner.init(spec_of(), worlds.policy()).critic
  rows = jax.tree.map(lambda x: x[0], whole_updates.batch().tokens)
  plain = spec_of(whole_updates.CONFIG)
  with pytest.raises(ValueError, match=r"set learner\.critic_lora"):
    plain.values(critic, worlds.policy(), rows)


def test_a_pattern_that_fits_nothing_is_refused():
  wrong = LoraConfig(rank=2, targets=("layers/none/kernel",))
  config = dataclasses.replace(CONFIG, critic_lora=wrong)
  with pytest.raises(ValueError, match=r"layers/none/kernel' fits none"):
    learner.init(spec_of(config), worlds.policy())


@pytest.mark.slow
def test_float64_and_derivatives_go_through_them():
  home = jax if hasattr(jax, "enable_x64") else jax.experimental
  batch = whole_updates.batch()
  with home.enable_x64(True):
    wide = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, "float64"), tree)
    model = dataclasses.replace(worlds.model(), compute="float64")
    spec = learner.make_spec(
      model, learner_runs.row("steppo"), CONFIG, mesh.make_mesh(1),
      num_updates=4, seed=0, differentiable=True,
    )  # fmt: skip
    start = learner.init(spec, wide(worlds.policy()))
    start = start.replace(
      critic=wide(start.critic),
      critic_optimizer=spec.critic_optimizer.init(wide(start.critic)),
    )

    def reached(size):
      head = start.critic["head"]
      head = head | {"kernel": head["kernel"] + size}
      state = start.replace(critic=start.critic | {"head": head})
      after, _ = update_lib.update(spec, state, None, batch)
      return sum(jnp.sum(x) for x in after.critic["adapters"].values())

    found = jax.jit(jax.value_and_grad(reached))
    step = 1e-5
    low, high = (found(jnp.float64(0.1 + x))[0] for x in (-step, step))
    slope = found(jnp.float64(0.1))[1]
    assert slope.dtype == jnp.float64
    np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=1e-3)
    assert abs(slope) > 1e-6
