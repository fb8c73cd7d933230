"""The type that an operation computes in, and constants of that type.

Operations compute in float32, and in float64 where they are given float64
(under `jax_enable_x64`). Nothing is left to implicit promotion, so that they
also run under `jax_numpy_dtype_promotion="strict"`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def common(*arrays: Any) -> np.dtype:
  """float64 if one of the arrays is, float32 otherwise.

  A Python number, and one that was traced as such, has no type of its own.
  """
  wide = any(
    getattr(x, "dtype", None) == np.float64 and not getattr(x, "weak_type", 0)
    for x in arrays
    if not isinstance(x, np.generic)
  )
  return np.dtype(np.float64 if wide else np.float32)


def of(*arrays: chex.Array) -> list[chex.Array]:
  """The arrays, all of their common type."""
  kind = common(*arrays)
  return [jnp.asarray(x).astype(kind) for x in arrays]


def wide(x: chex.Array) -> chex.Array:
  """One array in the type that it is computed in."""
  return jnp.asarray(x).astype(common(x))


def along_last(vector: chex.Array, x: chex.Array) -> chex.Array:
  """A vector with axes of size 1 before it, of the rank of `x`."""
  return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def constant(value: chex.Numeric, kind: np.dtype) -> chex.Numeric:
  """A constant that may be multiplied with arrays of a type.

  A Python number stays one: what is computed of several of them is then
  rounded once.

  Args:
    value: A number, or an array that may be traced.
    kind: The type of the arrays.
  """
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, jax.Array | np.ndarray):
    return jnp.asarray(value).astype(kind)
  return value


# A sum of more numbers than this is made in two passes: a scatter adds one
# after the other, and float32 loses a digit with every few thousand.
_MANY = 2**16


def segment_sum(
  x: chex.Array, ids: chex.Array, mask: chex.Array, *, num_segments: int
) -> chex.Array:
  """[num_segments] sums over the entries of each segment where `mask` holds.

  Of many numbers the mean is taken first, and what is left of them is added to
  it: the error stays near that of one rounding, however many there are. What
  `mask` leaves out is not read.
  """
  add = lambda x: jax.ops.segment_sum(
    x.reshape(-1), ids.reshape(-1), num_segments=num_segments
  )
  x = wide(jnp.where(mask, x, 0))
  total = add(x)
  if x.size <= _MANY:
    return total
  count = add(mask.astype(jnp.int32)).astype(x.dtype)
  mean = jax.lax.stop_gradient(total / jnp.maximum(count, 1))
  # XLA would begin the second scatter at the large number.
  rest = jax.lax.optimization_barrier(add(jnp.where(mask, x - mean[ids], 0)))
  return mean * count + rest


def check_below(ids: chex.Array, limit: int, name: str, of: str) -> None:
  """Refuses numbers that lie outside of 0 .. limit - 1.

  Traced numbers are not known: there, as everywhere in JAX, a number that is
  too large is left out of a sum and read as the last one.

  Args:
    ids: Integers.
    limit: Number of slots.
    name: What the integers are called.
    of: What the limit is called.

  Raises:
    ValueError: one is too large or below 0.
  """
  if isinstance(ids, jax.core.Tracer) or not ids.size:
    return
  ids = np.asarray(ids)
  low, high = ids.min(), ids.max()
  if low < 0 or high >= limit:
    raise ValueError(
      f"{name} holds {low if low < 0 else high}, but {of}={limit} leaves room"
      f" for 0 to {limit - 1} alone"
    )
