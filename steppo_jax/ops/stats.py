"""Masked moments and whitening, in float32 and in two passes."""

import chex
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
  total, count = masked_sum(x, mask)
  mean = total / jnp.maximum(count, 1)
  offset = jnp.where(mask, x - mean, 0).astype(jnp.float32)
  variance = jnp.square(offset).sum() / jnp.maximum(count - 1, 1)
  low = jnp.where(mask, x, jnp.inf).min(initial=jnp.inf)
  high = jnp.where(mask, x, -jnp.inf).max(initial=-jnp.inf)
  return mean, jnp.where(nearly_equal(low, high), 0.0, variance)


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
