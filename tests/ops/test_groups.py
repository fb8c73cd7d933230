"""Whitening and group statistics."""

import jax
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.ops import groups, stats

seeds = st.integers(0, 2**31)
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
f32 = lambda x: np.asarray(x, np.float32)
whiten = jax.jit(stats.whiten)


@jax.jit
def scores(x, group, live):
  return (
    groups.group_center(x, group, live, num_groups=4),
    groups.group_zscore(
      x, group, live, num_groups=4, eps=1e-6, singleton="zero"
    ),
    groups.group_leave_one_out(x, group, live, num_groups=4),
  )


def test_whitening_three_numbers():
  # Mean 2, deviation sqrt((1 + 0 + 1) / 2) = 1.
  got = stats.whiten(f32([1, 2, 3, 1e30]), np.array([1, 1, 1, 0], bool))
  close(got, [-1, 0, 1, 0])


@pytest.mark.parametrize("x", [[5.0], [0.1] * 7, []])
def test_whitening_gives_zero_without_spread(x):
  mask = np.arange(8) < len(x)
  got = stats.whiten(f32([*x, *[1e30] * (8 - len(x))]), mask)
  np.testing.assert_array_equal(got, np.zeros(8))
  grad = jax.grad(lambda y: (stats.whiten(y, mask) ** 2).sum())(f32([1.0] * 8))
  np.testing.assert_array_equal(grad, np.zeros(8))


@given(seeds)
def test_whitening_equals_a_loop(seed):
  rng = np.random.default_rng(seed)
  x, mask = f32(rng.normal(3, 2, size=12)), rng.uniform(size=12) < 0.5
  got = whiten(np.where(mask, x, 1e30).astype(np.float32), mask)
  close(got, reference.whiten(x, mask))


@given(seeds)
def test_group_scores_equal_a_loop(seed):
  rng = np.random.default_rng(seed)
  # Few distinct rewards, so that equal groups and groups of one are common.
  x = f32(rng.choice([0.0, 0.1, 1.0], size=8))
  group = rng.integers(0, 4, size=8).astype(np.int32)
  live = rng.uniform(size=8) < 0.8
  got = scores(np.where(live, x, 1e30).astype(np.float32), group, live)
  expected = reference.group_scores(x, group, live, 1e-6)
  for mine, theirs in zip(got, expected, strict=True):
    close(mine, theirs)


@pytest.mark.parametrize("size", [2, 7, 1000])
@pytest.mark.parametrize("value", [0.1, -0.3, 1e-8, 1e8])
def test_an_equal_group_gives_exactly_zero(size, value):
  x = np.full(size, value, np.float32)
  x[0] = np.nextafter(x[0], np.float32(np.inf))
  args = x, np.zeros(size, np.int32), np.ones(size, bool)
  score = groups.group_zscore(*args, num_groups=1, eps=0.0, singleton="zero")
  np.testing.assert_array_equal(score, np.zeros(size))
  leave = groups.group_leave_one_out(*args, num_groups=1)
  np.testing.assert_array_equal(leave, np.zeros(size))


def test_a_group_with_a_small_but_real_spread_is_kept():
  x = f32([1.0, 1.0, 1.00001])
  args = x, np.zeros(3, np.int32), np.ones(3, bool)
  score = groups.group_zscore(*args, num_groups=1, eps=0.0, singleton="zero")
  assert score[2] > 1


def test_one_member_and_no_member():
  args = f32([5, 1e30]), np.array([2, 1]), np.array([True, False])
  score = lambda singleton: groups.group_zscore(
    *args, num_groups=4, eps=1e-6, singleton=singleton
  )
  np.testing.assert_array_equal(score("zero"), [0, 0])
  close(score("raw"), [5 / (1 + 1e-6), 0])
  with pytest.raises(ValueError, match="'zero' or 'raw', not 'drop'"):
    score("drop")


def test_gradient_of_a_score_is_finite_for_every_kind_of_group():
  # A pair, an equal pair, a group of one, a dead slot.
  group = np.array([0, 0, 1, 1, 2, 3], np.int32)
  live = np.array([1, 1, 1, 1, 1, 0], bool)
  total = lambda x: (scores(x, group, live)[1] ** 2 * np.arange(6)).sum()
  grad = jax.grad(total)(f32([0, 1, 0.3, 0.3, 4, 1e30]))
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(grad[2:], np.zeros(4))


@given(seeds)
def test_pairs_get_one_number_exactly_where_both_are_equal(seed):
  rng = np.random.default_rng(seed)
  a, b = rng.integers(-1, 3, size=(2, 10)).astype(np.int32)
  number = np.asarray(groups.joint_group(a, b))
  same = (a[:, None] == a) & (b[:, None] == b)
  np.testing.assert_array_equal(number[:, None] == number, same)
  assert number.min() >= 0
  assert number.max() < 10


def test_integer_rewards_are_refused():
  group, live = np.zeros(3, np.int32), np.ones(3, bool)
  whole = np.zeros(3, np.int32)
  with pytest.raises(AssertionError):
    groups.group_center(whole, group, live, num_groups=1)
  with pytest.raises(AssertionError):
    stats.whiten(whole, live)
  with pytest.raises(AssertionError):
    groups.group_center(f32([1, 2]), group, live, num_groups=1)
