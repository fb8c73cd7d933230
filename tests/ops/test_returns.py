"""Returns and advantages against the double sum of their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.ops import returns

seeds = st.integers(0, 2**31)
unit = st.floats(0, 1)
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5)

step_gae = jax.jit(returns.step_gae)
token_gae = jax.jit(returns.token_gae)
discounted_returns = jax.jit(returns.discounted_returns)


@given(seeds, unit, unit)
def test_step_gae_equals_the_double_sum(seed, discount, lambda_):
  batch = reference.ragged(seed)
  value = np.random.default_rng(seed).normal(size=9).astype(np.float32)
  advantage, target = step_gae(
    batch.reward,
    value,
    batch.last,
    batch.bootstrap,
    discount=discount,
    lambda_=lambda_,
  )
  expected = reference.step_gae(
    batch.reward,
    value,
    batch.last,
    batch.live,
    batch.bootstrap,
    discount,
    lambda_,
  )
  close(np.asarray(advantage)[batch.live], expected[batch.live])
  close(target, np.asarray(advantage) + value)


@given(seeds, unit, unit)
def test_token_gae_equals_the_double_sum(seed, discount, lambda_):
  batch = reference.ragged(seed)
  rng = np.random.default_rng(seed)
  value = rng.normal(size=batch.step_ids.shape).astype(np.float32)
  advantage, target = token_gae(
    batch.reward,
    value,
    batch.step_ids,
    batch.last,
    batch.bootstrap,
    discount=discount,
    lambda_=lambda_,
  )
  expected = reference.token_gae(
    batch.reward,
    value,
    batch.step_ids,
    batch.last,
    batch.live,
    batch.bootstrap,
    discount,
    lambda_,
  )
  close(advantage, expected)
  action = batch.step_ids > 0
  close(target, np.where(action, expected + value, 0))


def side_by_side(seed, columns, longest):
  """Rows of steps without a gap in them, in any order of rows; 30 steps."""
  rng = np.random.default_rng(seed)
  ids = np.zeros((4, columns), np.int32)
  free = np.zeros(4, int)
  for k in rng.permutation(np.arange(1, 31)):
    row = rng.integers(4)
    start = free[row] + rng.integers(0, 3)
    end = start + rng.integers(0, longest + 1)
    if end <= columns:
      ids[row, start:end], free[row] = k, end
  live = np.arange(31) > 0
  last = ~live | (rng.uniform(size=31) < 0.3)
  last[30] = True
  reward, bootstrap = rng.normal(size=(2, 31)).astype(np.float32)
  value = rng.normal(size=ids.shape).astype(np.float32)
  return reward, value, ids, last, live, bootstrap


# Steps longer and shorter than a block of the matrix product and than the
# stride in which their tokens are looked for; rows of one and of many blocks.
@pytest.mark.parametrize(("columns", "longest"), [(1, 1), (31, 6), (97, 20)])
@given(seeds, unit, unit)
def test_steps_side_by_side_equal_the_double_sum(
  columns, longest, seed, discount, lambda_
):
  reward, value, ids, last, live, bootstrap = side_by_side(
    seed, columns, longest
  )
  constants = {"discount": discount, "lambda_": lambda_}
  advantage, target = token_gae(
    reward, value, ids, last, bootstrap, **constants
  )
  expected = reference.token_gae(
    reward, value, ids, last, live, bootstrap, discount, lambda_
  )
  close(advantage, expected)
  close(target, np.where(ids > 0, expected + value, 0))


def test_one_gap_or_one_short_step_changes_no_other_trajectory():
  # The same 60 tokens of step 1, first alone, then beside a step of one token
  # that every eighth column misses, then beside one with a gap.
  value = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
  reward, last = np.array([0, 1, 2], np.float32), np.ones(3, bool)
  ids = np.zeros((3, 2, 64), np.int32)
  ids[:, 0, 2:62] = 1
  ids[1, 1, 3] = 2
  ids[2, 1, [3, 5, 6]] = 2
  alone, short, broken = (
    token_gae(
      reward, value, x, last, np.zeros(3, np.float32), discount=0.9, lambda_=0.8
    )[0]
    for x in ids
  )
  np.testing.assert_allclose(short[0], alone[0], rtol=1e-6)
  np.testing.assert_allclose(broken[0], alone[0], rtol=1e-6)
  # r - v at the last token; before it δ = .9 v₂ - v₁, A = δ + .72 A₂, and the
  # gap at column 4 takes no time.
  np.testing.assert_allclose(short[1, 3], 2 - value[1, 3], rtol=1e-6)
  final = 2 - value[1, 6]
  middle = 0.9 * value[1, 6] - value[1, 5] + 0.72 * final
  first = 0.9 * value[1, 5] - value[1, 3] + 0.72 * middle
  np.testing.assert_allclose(
    broken[1, [3, 5, 6]], [first, middle, final], rtol=1e-5
  )


@given(seeds, unit)
def test_discounted_returns_equal_the_sum(seed, discount):
  batch = reference.ragged(seed)
  gain = discounted_returns(
    batch.reward, batch.last, batch.bootstrap, discount=discount
  )
  expected = reference.discounted_returns(
    batch.reward, batch.last, batch.live, batch.bootstrap, discount
  )
  close(np.asarray(gain)[batch.live], expected[batch.live])


@given(seeds)
def test_lambda_one_is_the_return_minus_the_value(seed):
  batch = reference.ragged(seed)
  value = np.random.default_rng(seed).normal(size=9).astype(np.float32)
  args = batch.last, batch.bootstrap
  advantage, target = step_gae(
    batch.reward, value, *args, discount=0.9, lambda_=1.0
  )
  gain = discounted_returns(batch.reward, *args, discount=0.9)
  close(target, gain)
  close(advantage, gain - value)


@given(seeds, unit, unit)
def test_one_token_a_step_makes_token_gae_step_gae(seed, discount, lambda_):
  batch = reference.ragged(seed)
  rng = np.random.default_rng(seed)
  value = rng.normal(size=9).astype(np.float32)
  # Step k in row order[k]: rows need not follow the steps.
  order = rng.permutation(9)
  ids, value_t = np.zeros((9, 4), np.int32), np.zeros((9, 4), np.float32)
  ids[order, 2] = np.where(batch.live, np.arange(9), 0)
  value_t[order, 2] = value
  constants = {"discount": discount, "lambda_": lambda_}
  by_token, _ = token_gae(
    batch.reward, value_t, ids, batch.last, batch.bootstrap, **constants
  )
  by_step, _ = step_gae(
    batch.reward, value, batch.last, batch.bootstrap, **constants
  )
  by_step = np.where(batch.live, by_step, 0)
  close(np.asarray(by_token)[order, 2], by_step)


def test_the_reward_of_an_empty_step_falls_on_the_token_before_it():
  # Steps 1 2 3; step 2 is empty, rewards 1 10 100, values 0, γ .5:
  # last token of step 1: 1 + 10 + .5 * 100 = 61.
  ids = np.array([[1, 1, 0], [3, 0, 0]], np.int32)
  reward = np.array([0, 1, 10, 100], np.float32)
  last = np.array([True, False, False, True])
  advantage, _ = returns.token_gae(
    reward,
    np.zeros((2, 3), np.float32),
    ids,
    last,
    np.zeros(4, np.float32),
    discount=0.5,
    lambda_=1.0,
  )
  np.testing.assert_array_equal(advantage, [[30.5, 61, 0], [100, 0, 0]])


def test_truncation_bootstraps_and_termination_does_not():
  # δ = 1 + .9 * 10 - 2 = 8 if cut off, 1 - 2 = -1 if ended.
  run = lambda bootstrap: returns.step_gae(
    np.array([0, 1], np.float32),
    np.array([0, 2], np.float32),
    np.array([True, True]),
    np.array([0, bootstrap], np.float32),
    discount=0.9,
    lambda_=0.5,
  )[0][1]
  np.testing.assert_allclose([run(10.0), run(0.0)], [8, -1], rtol=1e-6)


def test_the_zero_bootstrap_is_biased_by_the_formula():
  # -(γλ)^(T-k) γ V(s_T+1) at every step k of an episode of T = 3.
  reward = np.array([0, 1, 2, 3], np.float32)
  value = np.array([0, 3, 1, 2], np.float32)
  last = np.array([True, False, False, True])
  run = lambda bootstrap: returns.step_gae(
    reward,
    value,
    last,
    np.array([0, 0, 0, bootstrap], np.float32),
    discount=0.9,
    lambda_=0.8,
  )[0][1:]
  bias = -(0.72 ** np.array([2, 1, 0])) * 0.9 * 5.0
  np.testing.assert_allclose(run(0.0) - run(5.0), bias, rtol=1e-5)


def test_poison_where_nothing_is_read_changes_no_value_and_no_gradient():
  batch = reference.ragged(3)
  rng = np.random.default_rng(3)
  value = rng.normal(size=batch.step_ids.shape).astype(np.float32)
  action, last = batch.step_ids > 0, batch.last

  def loss(value, bootstrap):
    advantage, _ = returns.token_gae(
      batch.reward,
      value,
      batch.step_ids,
      last,
      bootstrap,
      discount=0.9,
      lambda_=0.8,
    )
    return jnp.square(advantage).sum()

  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  clean = run(value, batch.bootstrap)
  poisoned = run(
    np.where(action, value, 1e30).astype(np.float32),
    np.where(last, batch.bootstrap, 1e30).astype(np.float32),
  )
  jax.tree.map(np.testing.assert_array_equal, clean, poisoned)
  np.testing.assert_array_equal(np.asarray(poisoned[1][0])[~action], 0)


def test_slot_zero_reaches_no_step():
  batch = reference.ragged(5)
  value = np.ones(9, np.float32)
  run = lambda reward: returns.step_gae(
    reward, value, batch.last, batch.bootstrap, discount=0.9, lambda_=0.8
  )[0][1:]
  poison = batch.reward.copy()
  poison[0] = 1e30
  np.testing.assert_array_equal(run(batch.reward), run(poison))


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_gradient_in_discount_and_lambda_is_finite_and_right(at):
  batch = reference.ragged(8)
  rng = np.random.default_rng(8)
  value = rng.normal(size=batch.step_ids.shape).astype(np.float32)
  weight = rng.normal(size=batch.step_ids.shape)

  def slow(discount, lambda_):
    return (
      weight
      * reference.token_gae(
        batch.reward,
        value,
        batch.step_ids,
        batch.last,
        batch.live,
        batch.bootstrap,
        discount,
        lambda_,
      )
    ).sum()

  def fast(discount, lambda_):
    advantage, _ = returns.token_gae(
      batch.reward,
      value,
      batch.step_ids,
      batch.last,
      batch.bootstrap,
      discount=discount,
      lambda_=lambda_,
    )
    return (weight.astype(np.float32) * advantage).sum()

  grads = jax.jit(jax.grad(fast, argnums=(0, 1)))(at, at)
  step = 1e-6
  expected = (
    (slow(at + step, at) - slow(at - step, at)) / (2 * step),
    (slow(at, at + step) - slow(at, at - step)) / (2 * step),
  )
  np.testing.assert_allclose(grads, expected, rtol=2e-4, atol=1e-4)


def test_integer_rewards_and_wrong_shapes_are_refused():
  x, last = np.zeros(3, np.float32), np.ones(3, bool)
  whole = np.zeros(3, np.int32)
  with pytest.raises(AssertionError, match="reward_k is int32: give"):
    returns.discounted_returns(whole, last, x, discount=1.0)
  with pytest.raises(AssertionError, match="reward_k is int32: give"):
    returns.step_gae(whole, x, last, x, discount=1.0, lambda_=1.0)
  with pytest.raises(AssertionError):
    returns.step_gae(x, x[:2], last, x, discount=1.0, lambda_=1.0)
  with pytest.raises(AssertionError):
    returns.step_gae(x, x, x, x, discount=1.0, lambda_=1.0)
  ids = np.zeros((1, 2), np.int32)
  value = np.zeros((1, 2), np.float32)
  with pytest.raises(AssertionError, match="reward_k is int32: give"):
    returns.token_gae(
      whole,
      value,
      ids,
      last,
      x,
      discount=1.0,
      lambda_=1.0,
    )
