"""A critic with two heads, and one with few of the policy's layers."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
import whole_updates
import worlds

from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import credit, learner, options
from steppo_jax.learner import update as update_lib
from steppo_jax.models import heads, mesh, transformer


def row_of(**changes):
  row = dataclasses.replace(algorithms_table.get("vetta"), kl_coef=0.0)
  return dataclasses.replace(row, **changes)


@pytest.mark.slow
def test_each_head_learns_its_targets_by_a_mean_of_its_own():
  # One gradient step of plain descent on each head's bias: minus the rate
  # times the mean error over steps, or over tokens.
  row = row_of(value_clip=None)
  rate = 1e-4  # so small that the second mini-batch sees the same critic
  parts = whole_updates.parts_of(row)._replace(
    policy_optimizer=optax.sgd(rate), critic_optimizer=optax.sgd(rate)
  )
  start = whole_updates.start(parts)
  batch = whole_updates.batch()
  found = jax.jit(lambda: credit.assign(parts, start, None, batch, None))()
  step = jax.jit(functools.partial(update_lib.update, parts))
  state, told = jax.device_get(step(start, None, batch))
  table, shape = batch.table, batch.tokens.tokens.shape
  part_k = np.asarray(table.boundary) // (shape[1] * shape[2])
  turn, token = (np.asarray(x) for x in found.old_value)
  turn_target, token_target = (np.asarray(x) for x in found.advantages.target)
  token_target = token_target.reshape(shape)
  ids, parent = (np.asarray(x) for x in (batch.tokens.step_ids,
                                         batch.tokens.parent))  # fmt: skip
  before = np.take_along_axis(token, parent, axis=2)
  steps = tokens = 0.0
  for m in range(2):
    mine = np.asarray(table.live) & (part_k == m)
    error = turn.reshape(-1)[np.asarray(table.boundary)] - turn_target
    steps += error[mine].mean()
    tokens += (before - token_target)[m][ids[m] > 0].mean()
  moved = lambda name: state.critic[name]["bias"] - start.critic[name]["bias"]
  np.testing.assert_allclose(moved("head"), -rate * steps, rtol=3e-2)
  np.testing.assert_allclose(moved("token_head"), -rate * tokens, rtol=3e-2)
  assert abs(moved("head") - moved("token_head")) > rate / 10
  for name in ("value_error_squared", "token_value_error_squared"):
    assert told[f"critic/{name}"][0] > 0


@pytest.mark.slow
def test_a_critic_of_some_layers_reads_no_other():
  model = dataclasses.replace(worlds.model(), num_layers=3)
  policy = transformer.init(model, jax.random.key(0))
  tokens = np.arange(8, dtype=np.int32)[None]
  attend = lambda q, k, v, **_: jax.nn.dot_product_attention(
    q, k, v, is_causal=True
  )
  critic = heads.init_critic(policy, own_trunk=True, num_layers=2)
  critic["head"]["kernel"] += 1.0
  first = {**policy, "layers": jax.tree.map(lambda x: x[:2], policy["layers"])}
  hidden = transformer.apply(
    dataclasses.replace(model, num_layers=2), first, tokens, tokens, attend
  )
  got = heads.values(model, critic, policy, tokens, tokens, attend)
  np.testing.assert_allclose(got, hidden.sum(-1), rtol=1e-4, atol=1e-5)


def test_layers_that_the_policy_lacks_are_refused():
  config = dataclasses.replace(whole_updates.CONFIG, critic_layers=2)
  with pytest.raises(
    ValueError, match="critic_layers=2 is more than the 1 lay"
  ):
    learner.make_spec(
      worlds.model(), row_of(), config, mesh.make_mesh(1), num_updates=1, seed=0
    )
  for wrong in ({"critic_layers": 0}, {"critic_layers": 1,
                                       "critic_trunk": "policy"}):  # fmt: skip
    with pytest.raises(ValueError, match=r"critic_layers=[01] must be"):
      options.LearnerConfig(**wrong)
