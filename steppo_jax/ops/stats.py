"""Masked moments and whitening, in float32 and in two passes."""

import chex
import jax
import jax.numpy as jnp

# Numbers that differ by less than this share of their magnitude are taken to be
# equal: float32 leaves a residue there that a tiny deviation would blow up.
EQUAL_WITHIN = 1e-6


def masked_sum(
  x: chex.Array, mask: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """Sum over the mask and number of entries in it, as (sum, weight).

  Args:
    x: Any shape, float; not read where `mask` is False.
    mask: Same shape, bool.

  Returns:
    Two float32 scalars; (0, 0) for an empty mask.
  """
  x, mask = jnp.asarray(x), jnp.asarray(mask)
  total = jnp.where(mask, x, 0).astype(jnp.float32).sum()
  return total, mask.sum(dtype=jnp.float32)


def masked_moments(
  x: chex.Array, mask: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """Mean and variance over the mask.

    mean = Σ x / n        variance = Σ (x - mean)² / (n - 1)

  Of two entries the variance is half the square of their difference.

  Args:
    x: Any shape, float; not read where `mask` is False.
    mask: Same shape, bool.

  Returns:
    Mean and variance, float32 scalars: 0 for an empty mask, and variance 0 for
    one entry and for entries that are equal within float32.

  Raises:
    AssertionError: the shapes differ, or `x` is not floating point.
  """
  x, mask = jnp.asarray(x), jnp.asarray(mask)
  chex.assert_equal_shape([x, mask])
  chex.assert_type([x, mask], [float, bool])
  low, high, count = _range_and_count(x, mask)
  mean = jnp.where(mask, x, 0).astype(jnp.float32).sum() / jnp.maximum(count, 1)
  offset = jnp.where(mask, x - mean, 0).astype(jnp.float32)
  variance = jnp.square(offset).sum() / jnp.maximum(count - 1, 1)
  return mean, jnp.where(nearly_equal(low, high), 0.0, variance)


def _range_and_count(x, mask):
  """Smallest and largest entry in the mask, +inf and -inf if none; its size.

  All three in one pass over the input: on CPU each reduction by itself first
  writes out what it reduces. No gradient goes through them.
  """
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  low, high, count = jax.lax.reduce(
    (
      jnp.where(mask, x, jnp.inf),
      jnp.where(mask, x, -jnp.inf),
      mask.astype(jnp.int32),
    ),
    (jnp.float32(jnp.inf), jnp.float32(-jnp.inf), jnp.int32(0)),
    lambda a, b: (
      jnp.minimum(a[0], b[0]),
      jnp.maximum(a[1], b[1]),
      a[2] + b[2],
    ),
    range(x.ndim),
  )
  return low, high, count.astype(jnp.float32)


def nearly_equal(low: chex.Array, high: chex.Array) -> chex.Array:
  """Whether numbers between `low` and `high` are equal within float32.

  Args:
    low: Smallest of the numbers, +inf if there are none.
    high: Largest of the numbers, -inf if there are none.

  Returns:
    bool in the common shape; True if there are none.
  """
  magnitude = jnp.maximum(jnp.abs(low), jnp.abs(high))
  return high - low <= EQUAL_WITHIN * magnitude


def whiten(x: chex.Array, mask: chex.Array) -> chex.Array:
  """Shifts and scales the entries of the mask to mean 0 and deviation 1.

    (x - mean) / (std + 1e-8), with n - 1 in the deviation

  A constant that is added to all entries, or a positive one that multiplies
  them, changes nothing (but for the 1e-8): the unit of the reward does not
  matter. Two entries become ±1/√2. Where every step has exactly one action
  token, whitening over steps and over tokens is the same.

  Call it once, on the whole batch: moments of parts are not those of the whole.

  Args:
    x: Any shape, float; not read where `mask` is False.
    mask: Same shape, bool.

  Returns:
    Same shape, float32; 0 outside the mask, for a mask with one entry, and for
    entries that are equal within float32.

  Raises:
    AssertionError: the shapes differ, or `x` is not floating point.
  """
  x, mask = jnp.asarray(x), jnp.asarray(mask)
  mean, variance = masked_moments(x, mask)
  spread = variance > 0
  std = jnp.sqrt(jnp.where(spread, variance, 1.0))
  x = jnp.where(mask, x, mean).astype(jnp.float32)
  return jnp.where(mask & spread, (x - mean) / (std + 1e-8), 0.0)
