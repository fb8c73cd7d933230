"""Log-ratios, their pooling, and weights against the sampler's drift."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.ops import ratios

seeds = st.integers(0, 2**31)
powers = st.sampled_from([0.0, 0.5, 1.0])
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@jax.jit
def pooled(z, ids, power):
  both = (
    ratios.pooled_log_ratio(z, ids, num_steps=9, power=power, center=center)
    for center in (False, True)
  )
  return tuple(both)


@given(seeds, powers)
def test_pooling_equals_a_loop(seed, power):
  ids = reference.ragged(seed).step_ids
  z = np.random.default_rng(seed).normal(size=ids.shape).astype(np.float32)
  z = np.where(ids > 0, z, 1e30).astype(np.float32)
  for got, center in zip(pooled(z, ids, power), (False, True), strict=True):
    close(got, reference.pooled_log_ratio(z, ids, 9, power, center))


@given(seeds, powers)
def test_one_token_a_step_makes_every_pooling_the_token_ratio(seed, power):
  z = np.random.default_rng(seed).normal(size=(6, 10)).astype(np.float32)
  ids = np.zeros((6, 10), np.int32)
  ids[:4, 3] = [1, 2, 3, 4]
  expected = [0, *z[:4, 3], 0, 0, 0, 0]
  for got in pooled(z, ids, power):
    close(got, expected)


def test_the_mean_given_by_hand_equals_the_mean_of_the_batch():
  ids = reference.ragged(1).step_ids
  z = np.random.default_rng(1).normal(size=ids.shape).astype(np.float32)
  total, count = ratios.log_ratio_mean(z, ids)
  given_mu = ratios.pooled_log_ratio_centered(
    z, ids, total / count, num_steps=9, power=0.5
  )
  own_mu = ratios.pooled_log_ratio(z, ids, num_steps=9, power=0.5, center=True)
  np.testing.assert_array_equal(given_mu, own_mu)


def test_the_centre_is_a_constant_for_the_gradient():
  # Two steps of 4 tokens: d log w / d z is 1 / sqrt 4 in the step and 0 beside.
  ids = np.array([[1, 1, 1, 1], [2, 2, 2, 2]], np.int32)
  z = np.arange(8, dtype=np.float32).reshape(2, 4)
  first = lambda z: ratios.pooled_log_ratio(
    z, ids, num_steps=3, power=0.5, center=True
  )[1]
  np.testing.assert_allclose(jax.grad(first)(z), [[0.5] * 4, [0.0] * 4])


def test_log_ratio_reads_nothing_outside_the_mask():
  mask = np.array([[True, False]])
  logp, old = np.float32([[-1, 1e30]]), np.float32([[-3, -1e30]])
  z = ratios.log_ratio(logp, old, mask)
  np.testing.assert_array_equal(z, [[2, 0]])
  ratio = lambda x: jnp.exp(ratios.log_ratio(x, old, mask)).sum()
  np.testing.assert_allclose(
    jax.grad(ratio)(logp), [[np.exp(2.0), 0]], rtol=1e-6
  )


@pytest.mark.parametrize(
  ("kind", "expected", "slope"),
  [
    # Step 1: ratios 2 and .25, product .5, geometric mean .707. Step 2: 4.
    ("tis_token", [[2, 0.25, 0], [3, 0, 0]], [[2, 0.25, 0], [0, 0, 0]]),
    # Both weights of step 1 are the product, which each z moves.
    ("tis_step", [[0.5, 0.5, 0], [3, 0, 0]], [[1, 1, 0], [0, 0, 0]]),
    ("icepop", [[2, 0, 0], [0, 0, 0]], [[2, 0, 0], [0, 0, 0]]),
    ("geometric", [[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
  ],
)
def test_rollout_weights_by_hand(kind, expected, slope):
  ids = np.array([[1, 1, 0], [2, 0, 0]], np.int32)
  z = np.where(ids > 0, np.log([[2, 0.25, 1], [4, 1, 1]]), 1e30)
  z = z.astype(np.float32)
  for function, want in (
    (ratios.rollout_weight, np.zeros((2, 3))),
    (ratios.differentiable_rollout_weight, slope),
  ):
    weight, back = jax.vjp(
      functools.partial(
        function, step_ids=ids, num_steps=3, kind=kind, low=0.5, high=3.0
      ),
      z,
    )
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    np.testing.assert_allclose(*back(jnp.ones_like(weight)), want, rtol=1e-6)


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    # The rows above: tokens 2, .25 and 4, products .5 and 4.
    ("tis_token", [[2, 0.25, 0], [4, 0, 0]]),
    ("tis_step", [[0.5, 0.5, 0], [4, 0, 0]]),
    ("icepop", [[2, 0.25, 0], [4, 0, 0]]),
    ("geometric", [[1, 1, 0], [1, 0, 0]]),
  ],
)
def test_with_an_infinite_band_rollout_weights_have_no_bound(kind, expected):
  ids = np.array([[1, 1, 0], [2, 0, 0]], np.int32)
  z = np.float32(np.log([[2, 0.25, 1], [4, 1, 1]]))
  weight = ratios.rollout_weight(
    z, ids, num_steps=3, kind=kind, low=0.0, high=np.inf
  )
  np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_an_unknown_rollout_weight_is_refused():
  with pytest.raises(ValueError, match=r"icepop.*not 'tis'"):
    ratios.rollout_weight(
      np.zeros((1, 1), np.float32),
      np.zeros((1, 1), np.int32),
      num_steps=1,
      kind="tis",
      low=0.0,
      high=2.0,
    )
