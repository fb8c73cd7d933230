"""Sums of many tokens, empty parts, edges of penalties, second derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.ops import (
  aggregation,
  groups,
  losses,
  ratios,
  returns,
  segments,
  shaping,
  stats,
)

f32 = lambda x: np.asarray(x, np.float32)
seeds = st.integers(0, 2**31)


# Sums of many tokens.


def test_a_sum_of_many_tokens_keeps_its_digits():
  # Added one after the other in float32 they would be wrong in the third digit.
  x = np.random.default_rng(0).uniform(-0.3, 1.0, (2, 2**20)).astype("f4")
  ids = np.tile(np.int32([[1], [2]]), (1, x.shape[1]))
  ids[:, ::5] = 0
  wide, mask = x.astype("f8"), ids > 0
  want = np.array([wide[i][mask[i]].sum() for i in range(2)])
  got = jax.jit(functools.partial(segments.step_sum, num_steps=3))(x, ids)
  np.testing.assert_allclose(got[1:], want, rtol=1e-6)
  total, count = jax.jit(aggregation.token_mean)(x, ids)
  np.testing.assert_allclose(total, want.sum(), rtol=1e-6)
  assert count == mask.sum()
  # A deviation that is small beside the mean.
  far = x * np.float32(1e-2) + np.float32(100)
  mean, variance = jax.jit(stats.masked_moments)(far, mask)
  chosen = far.astype("f8")[mask]
  np.testing.assert_allclose(mean, chosen.mean(), rtol=1e-6)
  np.testing.assert_allclose(variance, chosen.var(ddof=1), rtol=1e-4)
  slope = jax.grad(lambda x: aggregation.token_mean(x, ids)[0])(x)
  np.testing.assert_array_equal(slope, mask)


def test_counts_go_beyond_what_float32_can_count():
  mask = jnp.ones(2**24 + 2, bool)
  zeros = jnp.zeros(mask.shape, jnp.int32)
  count = jax.jit(functools.partial(groups.group_count, num_groups=1))
  assert count(zeros, mask)[0] == 2**24 + 2
  assert jax.jit(stats.masked_sum)(jnp.ones(mask.shape), mask) == (
    2**24 + 2,
    2**24 + 2,
  )


# Empty parts. Each function takes numbers and which of its slots are there.

IDS = np.int32([[0, 1, 1, 0, 2], [3, 0, 4, 4, 4]])
GROUP = np.int32([0, 0, 0, 1, 1])


def _of_tokens(x, here):
  ids = jnp.where(here[IDS], IDS, 0)
  z_t = 0.3 * x[IDS] * jnp.arange(1.0, 6.0)[None]
  count = segments.step_count(ids, num_steps=5)
  last = jnp.array([1, 0, 1, 0, 1], bool)
  return {
    "token_mean": aggregation.token_mean(z_t, ids),
    "step_mean": aggregation.step_mean_loss(z_t, ids, num_steps=5),
    "by_steps": aggregation.trajectory_step_mean(z_t, ids, count, GROUP),
    "by_tokens": aggregation.trajectory_token_mean(z_t, ids, count, GROUP),
    "constant": aggregation.token_sum_over_constant(
      z_t, ids, count, GROUP, constant=4.0
    ),
    "pooled": ratios.pooled_log_ratio(
      z_t, ids, num_steps=5, power=0.5, center=True
    ),
    "weight": ratios.rollout_weight(
      z_t, ids, num_steps=5, kind="geometric", low=0.5, high=2.0
    ),
    "whiten": stats.whiten(z_t, ids > 0),
    "token_weight": shaping.token_weight(
      z_t, jnp.square(z_t), ids, num_steps=5, mix=0.5
    ),
    "centered": segments.centered(z_t, ids, num_steps=5),
    "token_gae": returns.token_gae(
      jnp.where(here, x, 0), z_t, ids, last, x, discount=0.9, lambda_=0.8
    ),
  }


def _of_members(x, here):
  score = functools.partial(groups.group_zscore, num_groups=2, eps=1e-6)
  return {
    "whiten": stats.whiten(x, here),
    "center": groups.group_center(x, GROUP, here, num_groups=2),
    "zscore": score(x, GROUP, here, singleton="zero"),
    "raw": score(x, GROUP, here, singleton="raw"),
    "others": groups.group_leave_one_out(x, GROUP, here, num_groups=2),
    "mean": groups.group_mean(x, GROUP, here, num_groups=2),
  }


@functools.cache
def _values_and_slopes(function):
  def both(x, here):
    found = function(x, here)
    slope = jax.jacrev(lambda x: function(x, here))(x)
    curve = jax.jacfwd(jax.jacrev(lambda x: function(x, here)))(x)
    return found, slope, curve

  return jax.jit(both)


@pytest.mark.parametrize("function", [_of_tokens, _of_members])
@given(
  st.lists(st.booleans(), min_size=5, max_size=5),
  st.sampled_from([*f32([[0, 1, -2, 0.5, 3], [0] * 5, [0, 1, 1, 1, 1]])]),
)  # fmt: skip
def test_what_is_empty_or_equal_gives_0_and_finite_derivatives(
  function, here, x
):
  here = np.array(here)
  found, slope, curve = _values_and_slopes(function)(x, here)
  for leaf in jax.tree.leaves((found, slope, curve)):
    assert np.isfinite(leaf).all()
  if not here.any():
    kept = {k: v for k, v in found.items() if k not in ("token_gae",)}
    inside = jax.tree.leaves(kept)
    if function is _of_tokens:
      # Advantages outside of the actions stay as they are.
      inside = jax.tree.leaves(
        {k: v for k, v in kept.items() if k != "token_weight"}
      )
    assert not any(np.any(leaf) for leaf in inside)


# Edges of penalties: at the edge itself nothing is clipped.


@pytest.mark.parametrize(
  ("ratio", "advantage", "slope"),
  [
    (1.25, 1.0, -1), (np.nextafter(f32(1.25), f32(2)), 1.0, 0),
    (0.75, -1.0, 1), (np.nextafter(f32(0.75), f32(0)), -1.0, 0),
    (1.25, -1.0, 1), (0.75, 1.0, -1), (1.0, 1.0, -1),
    (3.0, -1.0, 1), (np.nextafter(f32(3), f32(4)), -1.0, 0), (5.0, 0.0, 0),
  ],
)  # fmt: skip
def test_a_clip_binds_beyond_its_edge(ratio, advantage, slope):
  def loss(ratio):
    return losses.clipped_surrogate(
      ratio, f32(advantage), clip_low=0.25, clip_high=0.25, dual_clip=3.0
    )

  found, clipped = jax.grad(loss, has_aux=True)(f32(ratio))
  assert found == slope
  assert clipped == (slope == 0 and advantage != 0)


@pytest.mark.parametrize(
  ("value", "slope"), [(0.5, -0.5), (0.25, -0.75), (0.501, 0), (-2.0, -3.0)]
)
def test_the_clip_of_values_binds_beyond_its_edge(value, slope):
  # Around 0 ± .5 with target 1: nearer to it there is no gradient.
  loss = lambda value: losses.value_loss(
    value, f32(0), f32(1), value_clip=f32(0.5)
  )
  found, clipped = jax.grad(loss, has_aux=True)(f32(value))
  assert found == slope
  assert clipped == (slope == 0)


@pytest.mark.parametrize("z", [0.0, 20.0, -20.0, 21.0, -21.0, 1e30, -1e30])
def test_log_ratios_of_any_size_have_finite_penalties(z):
  held = float(np.clip(z, -20, 20))
  inside = abs(z) <= 20
  ratio, slope = jax.value_and_grad(losses.bounded_exp)(f32(z))
  np.testing.assert_allclose(ratio, np.exp(held), rtol=1e-6)
  np.testing.assert_allclose(slope, np.exp(held) * inside, rtol=1e-6)
  kl, slope = jax.value_and_grad(losses.kl_k3)(f32(-z), f32(0))
  np.testing.assert_allclose(kl, np.expm1(held) - held, rtol=1e-6)
  np.testing.assert_allclose(slope, -np.expm1(held) * inside, rtol=1e-6)
  z_t = f32([[z, -z]])
  for kind in ("tis_token", "tis_step", "icepop", "geometric"):
    weight = ratios.rollout_weight(
      z_t, np.int32([[1, 2]]), num_steps=3, kind=kind, low=0.5, high=2.0
    )
    assert np.isfinite(weight).all()


@pytest.mark.parametrize(
  ("length", "cache", "penalty"),
  [
    (80, 20, 0), (81, 20, -0.05), (90, 20, -0.5), (100, 20, -1), (120, 20, -1),
    (100, 0, 0), (101, 0, -1), (0, 100, 0), (0, 0, 0),
  ],
)  # fmt: skip
def test_the_penalty_of_length_at_its_limits(length, cache, penalty):
  for one in (np.int32(length), f32(length)):
    got = shaping.overlong_penalty(one, max_length=100, cache=cache)
    np.testing.assert_allclose(got, penalty, rtol=1e-6)
    traced = jax.jit(
      lambda n, m, c: shaping.overlong_penalty(n, max_length=m, cache=c)
    )(one, np.int32(100), np.int32(cache))
    assert traced == got


# Ids that there is no slot for, and values that are not finite.


@pytest.mark.parametrize("wrong", [-1, 4, 2**20])
def test_ids_without_a_slot_are_refused_where_they_are_known(wrong):
  x, ids = f32([[1, 2]]), np.int32([[1, wrong]])
  k, last = f32([0] * 4), np.ones(4, bool)
  calls = [
    lambda: segments.step_sum(x, ids, num_steps=4),
    lambda: segments.step_mean(x, ids, num_steps=4),
    lambda: segments.step_count(ids, num_steps=4),
    lambda: segments.to_tokens(k, ids),
    lambda: segments.first_token(ids, num_steps=4),
    lambda: aggregation.step_mean_loss(x, ids, num_steps=4),
    lambda: ratios.pooled_log_ratio(
      x, ids, num_steps=4, power=1.0, center=False
    ),
    lambda: returns.token_gae(k, x, ids, last, k, discount=1.0, lambda_=1.0),
    lambda: groups.group_center(x[0], ids[0], ids[0] == ids[0], num_groups=4),
    lambda: groups.group_count(ids[0], ids[0] == ids[0], num_groups=4),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=f"holds {wrong}"):
      call()


@given(seeds, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_broken_value_spoils_its_own_trajectory_alone(seed, poison):
  rng = np.random.default_rng(seed)
  ids = np.int32([[1, 1, 0, 2, 2, 3], [4, 0, 4, 5, 6, 0], [0, 0, 7, 7, 8, 8]])
  last = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], bool)
  of = np.array([0, 1, 1, 2, 3, 3, 3, 4, 4])
  reward, after = f32(rng.normal(size=(2, 9)))
  value = f32(rng.normal(size=ids.shape))
  run = lambda value: np.stack(_token_gae(reward, value, ids, last, after))
  plain = run(value)
  at = tuple(rng.choice(np.argwhere(ids > 0)))
  spoilt = value.copy()
  spoilt[at] = poison
  got = run(spoilt)
  own = of[ids] == of[ids[at]]
  assert not np.isfinite(got[:, own & (ids <= ids[at]) & (ids > 0)]).any()
  # Steps that share a row share its rounding errors.
  np.testing.assert_allclose(got[:, ~own], plain[:, ~own], rtol=1e-5, atol=1e-6)


@jax.jit
def _token_gae(reward, value, ids, last, after):
  return returns.token_gae(
    reward, value, ids, last, after, discount=0.9, lambda_=0.8
  )
