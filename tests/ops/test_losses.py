"""Surrogates, value loss, and the means they are reduced by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.ops import aggregation, losses, segments

seeds = st.integers(0, 2**31)
f32 = lambda x: np.asarray(x, np.float32)
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
AGGREGATIONS = (
  "token_mean",
  "step_mean_loss",
  "trajectory_step_mean",
  "trajectory_token_mean",
  "token_sum_over_constant",
)


def aggregate(name, loss_t, ids, count_k, trajectory_k):
  function = getattr(aggregation, name)
  if name == "token_mean":
    return function(loss_t, ids)
  if name == "step_mean_loss":
    return function(loss_t, ids, num_steps=trajectory_k.shape[0])
  if name == "token_sum_over_constant":
    return function(loss_t, ids, count_k, trajectory_k, constant=7.0)
  return function(loss_t, ids, count_k, trajectory_k)


@jax.jit
def all_means(loss_t, ids, count_k, trajectory_k):
  args = loss_t, ids, count_k, trajectory_k
  return {name: aggregate(name, *args) for name in AGGREGATIONS}


def test_clip_by_hand():
  # A = 1: 1.5 is cut to 1.2, .5 is not. A = -1: .5 is cut to .8, 1.5 is not.
  loss, clipped = losses.clipped_surrogate(
    f32([1.5, 0.5, 0.5, 1.5]),
    f32([1, 1, -1, -1]),
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=None,
  )
  close(loss, [-1.2, -0.5, 0.8, 1.5])
  np.testing.assert_array_equal(clipped, [True, False, True, False])


def test_dual_clip_bounds_the_loss_of_bad_actions_only():
  loss, clipped = losses.clipped_surrogate(
    f32([5, 5, 2]), f32([-1, 1, -1]), clip_low=0.2, clip_high=9, dual_clip=3
  )
  close(loss, [3, -5, 2])
  np.testing.assert_array_equal(clipped, [True, False, False])


def test_clipped_is_where_the_gradient_is_zero():
  rng = np.random.default_rng(0)
  ratio, advantage = f32(rng.uniform(0, 4, 200)), f32(rng.normal(size=200))

  def total(ratio):
    loss, clipped = losses.clipped_surrogate(
      ratio, advantage, clip_low=0.2, clip_high=0.3, dual_clip=3.0
    )
    return loss.sum(), clipped

  grad, clipped = jax.jit(jax.grad(total, has_aux=True))(ratio)
  np.testing.assert_array_equal(np.asarray(grad) == 0, clipped)
  close(np.asarray(grad)[~clipped], -advantage[~clipped])


@given(seeds, st.sampled_from([None, 3.0]))
def test_surrogate_equals_a_loop(seed, dual):
  rng = np.random.default_rng(seed)
  ratio, advantage = f32(rng.uniform(0, 5, 20)), f32(rng.normal(size=20))
  loss, _ = losses.clipped_surrogate(
    ratio, advantage, clip_low=0.2, clip_high=0.3, dual_clip=dual
  )
  expected = reference.clipped_surrogate(ratio, advantage, 0.2, 0.3, dual)
  close(loss, expected)


def test_cispo_keeps_every_gradient_at_its_clipped_weight():
  # Ratios .5 1.1 2 clipped to [.8, 1.28]; d loss / d logp = -weight * A.
  advantage = f32([1, 1, -1])

  def total(logp):
    loss, clipped = losses.cispo(
      logp, jnp.exp(logp), advantage, clip_low=0.2, clip_high=0.28
    )
    return loss.sum(), clipped

  grad, clipped = jax.grad(total, has_aux=True)(np.log(f32([0.5, 1.1, 2])))
  close(grad, [-0.8, -1.1, 1.28])
  np.testing.assert_array_equal(clipped, [True, False, True])


def test_soft_gate_starts_like_reinforce_and_fades():
  slope = jax.grad(
    lambda w: losses.soft_gate(w, jnp.ones(()), tau=2.0)[0].sum()
  )
  close(slope(f32(1.0)), -1)
  assert abs(slope(f32(4.0))) < 0.02


def test_log_clip_is_pessimistic_both_ways():
  z, clipped = losses.log_clip(
    f32([1, -1, 1, -1]), f32([1, 1, -1, -1]), clip_low=0.4, clip_high=0.5
  )
  close(z, [0.5, -1, 1, -0.4])
  np.testing.assert_array_equal(clipped, [True, False, False, True])


def test_value_loss_without_clip_is_half_the_square():
  loss, clipped = losses.value_loss(
    f32([2, 1]), f32([0, 0]), f32([3, 0]), value_clip=None
  )
  close(loss, [0.5, 0.5])
  assert not clipped.any()


def test_k3_is_bounded_and_never_negative():
  gap = f32([-1e30, -30, -1, 0, 1e-4, 1, 30, 1e30])
  k3 = losses.kl_k3(gap, np.zeros_like(gap))
  assert np.isfinite(k3).all()
  assert (np.asarray(k3) >= 0).all()
  # Near 0 it is gap^2 / 2 to float32, not the noise of exp(d) - 1 - d.
  np.testing.assert_allclose(k3[4], 0.5e-8, rtol=2e-2)


def test_one_loss_five_means():
  # Trajectory 0: step 1 (losses 1 2 3) and step 2 (6). Trajectory 1: step 3 (4)
  ids = np.array([[1, 1, 1, 0], [2, 3, 0, 0]], np.int32)
  loss = f32([[1, 2, 3, 1e30], [6, 4, 1e30, 1e30]])
  count, trajectory = np.array([0, 3, 1, 1]), np.array([0, 0, 0, 1])
  pairs = all_means(loss, ids, count, trajectory)
  got = {name: float(s / w) for name, (s, w) in pairs.items()}
  close(
    [got[name] for name in AGGREGATIONS],
    # 16/5; (2+6+4)/3; ((2+6)/2 + 4)/2; (12/4 + 4)/2; (12/7 + 4/7)/2.
    [3.2, 4, 4, 3.5, 16 / 14],
  )


@given(seeds)
def test_means_equal_a_loop_and_add_up_over_microbatches(seed):
  batch = reference.ragged(seed)
  ids, trajectory = batch.step_ids, batch.trajectory
  loss = np.random.default_rng(seed).normal(size=ids.shape)
  loss = np.where(ids > 0, loss, 1e30).astype(np.float32)
  count = np.asarray(segments.step_count(ids, num_steps=9))
  whole = all_means(loss, ids, count, trajectory)
  # Two microbatches in one shape: rows that are not there hold no action.
  upper = np.arange(6)[:, None] < 2
  parts = [
    all_means(loss, np.where(rows, ids, 0), count, trajectory)
    for rows in (upper, ~upper)
  ]
  for name in AGGREGATIONS:
    total, weight = whole[name]
    expected = reference.aggregate(name, loss, ids, trajectory, 7.0)
    np.testing.assert_allclose(
      total / np.maximum(weight, 1e-9), expected, rtol=1e-4, atol=1e-5
    )
    close(sum(part[name][0] for part in parts), total)
    close(sum(part[name][1] for part in parts), weight)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_an_empty_mask_gives_nothing_over_nothing(name):
  pair = all_means(
    np.full((6, 10), 1e30, np.float32),
    np.zeros((6, 10), np.int32),
    np.zeros(9, np.int32),
    np.zeros(9, np.int32),
  )[name]
  np.testing.assert_array_equal(pair, (0, 0))


def test_losses_refuse_shapes_that_differ():
  with pytest.raises(AssertionError):
    losses.clipped_surrogate(
      f32([1, 2]), f32([[1], [2]]), clip_low=0.2, clip_high=0.2, dual_clip=None
    )
  with pytest.raises(AssertionError):
    losses.value_loss(f32([1]), f32([1]), np.array([1]), value_clip=None)
