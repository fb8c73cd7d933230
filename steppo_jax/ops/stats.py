"""Masked moments and whitening, in float32 and in two passes.

A NaN or an infinity inside a mask makes the moments NaN, so that whoever reads
them learns of it; one outside is not read.
"""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats

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
    Two scalars, float32 or float64; (0, 0) for an empty mask.
  """
  x, mask = jnp.asarray(x), jnp.asarray(mask)
  total = floats.wide(jnp.where(mask, x, 0)).sum()
  # Counted in whole numbers: float32 would stop at 2²⁴.
  return total, mask.sum(dtype=jnp.int32).astype(total.dtype)


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
    Mean and variance, two scalars: 0 for an empty mask, and variance 0 for
    one entry and for entries that are equal within float32. The variance is
    NaN if an entry is not finite.

  Raises:
    AssertionError: the shapes differ, or `x` is not floating point.
  """
  x, mask = jnp.asarray(x), jnp.asarray(mask)
  chex.assert_equal_shape([x, mask])
  chex.assert_type([x, mask], [float, bool])
  low, high, count = _range_and_count(x, mask)
  mean = floats.wide(jnp.where(mask, x, 0)).sum() / jnp.maximum(count, 1)
  offset = jnp.where(mask, floats.wide(x) - mean, 0)
  variance = jnp.square(offset).sum() / jnp.maximum(count - 1, 1)
  return mean, jnp.where(nearly_equal(low, high), 0.0, variance)


def _range_and_count(x, mask):
  """Smallest and largest entry in the mask, +inf and -inf if none; its size.

  All three in one pass over the input: on CPU each reduction by itself first
  writes out what it reduces. No gradient goes through them.
  """
  low, high = bounds(floats.wide(jax.lax.stop_gradient(x)), mask)
  kind = low.dtype.type
  low, high, count = jax.lax.reduce(
    (low, high, mask.astype(jnp.int32)),
    (kind(jnp.inf), kind(-jnp.inf), jnp.int32(0)),
    lambda a, b: (
      jnp.minimum(a[0], b[0]),
      jnp.maximum(a[1], b[1]),
      a[2] + b[2],
    ),
    range(x.ndim),
  )
  return low, high, count.astype(low.dtype)


def bounds(x: chex.Array, mask: chex.Array) -> tuple[chex.Array, chex.Array]:
  """What a minimum and a maximum over the mask are to be taken of.

  An entry that is not finite counts as both -inf and +inf: whether a minimum
  passes a NaN on is left to the compiler's flags.

  Args:
    x: Any shape, float; not read where `mask` is False.
    mask: Same shape, bool.

  Returns:
    Two arrays in the same shape: `x`, and +inf (-inf) outside the mask.
  """
  finite = jnp.isfinite(x)
  return (
    jnp.where(mask, jnp.where(finite, x, -jnp.inf), jnp.inf),
    jnp.where(mask, jnp.where(finite, x, jnp.inf), -jnp.inf),
  )


def nearly_equal(low: chex.Array, high: chex.Array) -> chex.Array:
  """Whether numbers between `low` and `high` are equal within float32.

  Args:
    low: Smallest of the numbers, +inf if there are none.
    high: Largest of the numbers, -inf if there are none.

  Returns:
    bool in the common shape; True if there are none, False if one is not
    finite.
  """
  magnitude = jnp.maximum(jnp.abs(low), jnp.abs(high))
  span = high - low
  # Of an infinite magnitude any share is infinite.
  return (span <= EQUAL_WITHIN * magnitude) & (span < jnp.inf)


def deviation(variance: chex.Array) -> chex.Array:
  """Square root of a variance to divide by: 1 where the variance is 0.

  NaN where the variance is NaN or has overflowed: a division by an infinite
  deviation would make zeros of numbers that are not equal.
  """
  std = jnp.sqrt(jnp.where(variance != 0, variance, 1.0))
  return jnp.where(variance < jnp.inf, std, jnp.nan)


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
    entries that are equal within float32. All of the mask is NaN if one entry
    is not finite, or if their squares overflow.

  Raises:
    AssertionError: the shapes differ, or `x` is not floating point.
  """
  x, mask = jnp.asarray(x), jnp.asarray(mask)
  mean, variance = masked_moments(x, mask)
  spread = variance != 0
  std = deviation(variance)
  x = jnp.where(mask, floats.wide(x), mean)
  return jnp.where(mask & spread, (x - mean) / (std + 1e-8), 0.0)
