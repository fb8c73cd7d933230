"""A NaN or an infinity in a number that counts is never made a 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.ops import groups, returns, shaping, stats

seeds = st.integers(0, 2**31)
poisons = st.sampled_from([np.nan, np.inf, -np.inf])
f32 = lambda x: np.asarray(x, np.float32)
SIZE, GROUPS = 12, 4

whiten = jax.jit(stats.whiten)


@jax.jit
def scores(x, group, live):
  of = lambda function, **options: function(
    x, group, live, num_groups=GROUPS, **options
  )
  return (
    of(groups.group_center),
    of(groups.group_zscore, eps=1e-6, singleton="zero"),
    of(groups.group_zscore, eps=1e-6, singleton="raw"),
    of(groups.group_leave_one_out),
  )


@jax.jit
def credits(reward, value, last, after):
  gain, _ = returns.step_gae(
    reward, value, last, after, discount=0.9, lambda_=0.8
  )
  return returns.discounted_returns(reward, last, after, discount=0.9), gain


@pytest.mark.parametrize(
  "x", [[np.nan, 1, 2], [np.inf, 1, 2], [-np.inf, 1], [np.inf] * 3, [np.nan]]
)
def test_whitening_tells_of_what_is_not_finite(x):
  assert np.isnan(stats.whiten(f32(x), np.ones(len(x), bool))).all()


def test_whitening_tells_of_squares_that_overflow():
  # Both deviations are 1e20: their square is past the end of float32.
  assert np.isnan(stats.whiten(f32([1e20, -1e20]), np.ones(2, bool))).all()


@given(seeds, poisons)
def test_whitening_reads_what_counts_and_nothing_else(seed, poison):
  rng = np.random.default_rng(seed)
  x, mask = f32(rng.normal(size=SIZE)), rng.uniform(size=SIZE) < 0.6
  plain = whiten(x, mask)
  np.testing.assert_array_equal(
    plain, whiten(np.where(mask, x, f32(poison)), mask)
  )
  if mask.any():
    x[rng.choice(np.flatnonzero(mask))] = poison
    got = np.asarray(whiten(x, mask))
    assert np.isnan(got[mask]).all()
    np.testing.assert_array_equal(got[~mask], 0)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_equal_numbers_are_whitened_to_0_however_large(value):
  x, mask = np.full(SIZE, value, np.float32), np.arange(SIZE) < 7
  np.testing.assert_array_equal(whiten(x, mask), np.zeros(SIZE))
  for score in scores(x, np.zeros(SIZE, np.int32), mask):
    np.testing.assert_array_equal(score, np.zeros(SIZE))


@given(seeds, poisons)
def test_a_member_spoils_its_own_group_alone(seed, poison):
  rng = np.random.default_rng(seed)
  x, live = f32(rng.normal(size=SIZE)), rng.uniform(size=SIZE) < 0.7
  group = rng.integers(0, GROUPS, SIZE).astype(np.int32)
  plain = scores(x, group, live)
  masked = scores(np.where(live, x, f32(poison)), group, live)
  for one, other in zip(plain, masked, strict=True):
    np.testing.assert_array_equal(one, other)
  if not live.any():
    return
  at = rng.choice(np.flatnonzero(live))
  x[at] = poison
  own = live & (group == group[at])
  for before, after in zip(plain, scores(x, group, live), strict=True):
    assert not np.isfinite(np.asarray(after)[own]).any()
    np.testing.assert_array_equal(np.where(own, before, after), before)
  spread = groups.group_spread(x, group, live, num_groups=GROUPS)
  assert spread[group[at]]


@given(seeds, poisons)
def test_a_recursion_ends_with_its_trajectory(seed, poison):
  rng = np.random.default_rng(seed)
  last = rng.uniform(size=SIZE) < 0.4
  last[-1] = True
  reward, value, after = f32(rng.normal(size=(3, SIZE)))
  at = int(rng.integers(SIZE))
  starts = np.flatnonzero(np.roll(last, 1))
  first = starts[starts <= at].max()
  end = at + int(np.argmax(last[at:]))
  spoilt = np.where(np.arange(SIZE) == at, f32(poison), reward)
  for plain, got in zip(
    credits(reward, value, last, after),
    credits(spoilt, value, last, after),
    strict=True,
  ):
    plain, got = np.asarray(plain), np.asarray(got)
    assert not np.isfinite(got[first : at + 1]).any()
    rest = np.ones(SIZE, bool)
    rest[first : end + 1] = False
    np.testing.assert_array_equal(got[rest], plain[rest])


def test_a_weight_that_is_not_a_number_is_told():
  got = shaping.token_weight(
    jnp.ones((1, 3)), f32([[np.nan, 1, 1]]), np.array([[1, 1, 2]]),
    num_steps=3, mix=0.5,
  )  # fmt: skip
  assert np.isnan(got[0, :2]).all()
  assert got[0, 2] == 1
