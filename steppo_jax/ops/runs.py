"""Where the runs of steps lie in rows, and discounted sums along rows.

What `returns.token_gae` is made of. A run is a maximal stretch of tokens of one
step in one row.
"""

import functools

import jax
import jax.numpy as jnp


def count_runs(step_ids):
  """Number of maximal runs of one step, int32."""
  after = step_ids[:, 1:]
  starts = ((after > 0) & (after != step_ids[:, :-1])).astype(jnp.int32)
  # Twice at once: XLA's CPU backend writes out what a plain sum is to add up,
  # which takes eight times as long, but not the operands of a joint reduction.
  add = lambda x, y: (x[0] + y[0], x[1] + y[1])
  zero = jnp.int32(0)
  inside, _ = jax.lax.reduce((starts, starts), (zero, zero), add, (0, 1))
  return inside + (step_ids[:, 0] > 0).sum(dtype=jnp.int32)


def one_token(step_ids, num_steps, every):
  """Flat index of some token of each step, and whether there is one, [S].

  Only columns 0, every, 2 every, ... of the flattened rows are looked at.
  """
  ids = step_ids.reshape(-1)
  index = jnp.arange(0, ids.size, every, dtype=jnp.int32)
  at_k = jnp.zeros(num_steps, jnp.int32).at[ids[::every]].max(index)
  slot_k = jnp.arange(num_steps, dtype=jnp.int32)
  return at_k, (ids[at_k] == slot_k) & (slot_k > 0)


def ends_of_runs(step_ids, at_k):
  """First and last flat index [2, S] of the run of step k around `at_k`."""
  ids = step_ids.reshape(-1)
  bits = (step_ids.shape[1] - 1).bit_length()
  slot_k = jnp.arange(at_k.shape[0], dtype=jnp.int32)
  sign = jnp.array([[-1], [1]], jnp.int32)

  # Strides of T/2, T/4, ..., 1 slots, each taken if it stays inside the run.
  def body(i, at):
    to = at + sign * (1 << (bits - 1 - jnp.asarray(i, jnp.int32)))
    to = jnp.where((to >= 0) & (to < ids.size), to, at)
    return jnp.where(ids[to] == slot_k[None], to, at)

  at = jnp.broadcast_to(at_k, (2, *at_k.shape))
  return jax.lax.fori_loop(0, bits, body, at)


def order(step_ids, num_steps):
  """[B, T] columns, those of a step side by side and in order."""
  columns = step_ids.shape[1]
  column = jnp.arange(columns, dtype=jnp.int32)[None]
  column = jnp.broadcast_to(column, step_ids.shape)
  start = (
    jnp.full(num_steps, columns - 1, jnp.int32)
    .at[step_ids]
    .min(column)[step_ids]
  )
  # Other slots go last; no step of several tokens starts there.
  start = jnp.where(step_ids > 0, start, columns - 1).astype(jnp.uint32)
  if columns > 2**16:
    return jnp.argsort(start, axis=1, stable=True)
  # On CPU one key sorts six times as fast as a key and what it carries.
  key = start * columns + jnp.arange(columns, dtype=jnp.uint32)[None]
  return (jnp.sort(key, axis=1) % columns).astype(jnp.int32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def powers(base, count):
  """1, c, c², ... as [count]; with all derivatives, at c = 0 too."""
  exponent = jnp.arange(count, dtype=jnp.int32)
  return jax.lax.pow(jnp.full(count, base), exponent)


@powers.defjvp
def _(count, primals, tangents):
  power = powers(primals[0], count)
  exponent = jnp.arange(count).astype(power.dtype)
  # The slope of cⁿ is n times the power before it.
  before = jnp.concatenate([jnp.zeros_like(power[:1]), power[:-1]])
  return power, exponent * before * tangents[0]


# Columns of a block: a product with so small a matrix takes as long as reading.
_BLOCK = 32


def discounted_tails(x_t, power):
  """Σⱼ﹥ᵢ c^(j-i-1) xⱼ along each row, [B, T], where power[n] is c^n.

  Within blocks of columns, then from block to block. There are no negative
  powers, so that nothing overflows.
  """
  rows, columns = x_t.shape
  size = min(_BLOCK, columns)
  x_t = jnp.pad(x_t, ((0, 0), (0, -columns % size)))
  block_t = x_t.reshape(rows, -1, size)
  inside_t = _tails(block_t, power)
  whole = block_t[:, :, 0] + power[1] * inside_t[:, :, 0]
  behind = _tails(whole, power[::size])
  tail_t = inside_t + behind[:, :, None] * power[:size][None, None, ::-1]
  return tail_t.reshape(rows, -1)[:, :columns]


def _tails(x, power):
  """The same over the last axis by one matrix product."""
  at = jnp.arange(x.shape[-1], dtype=jnp.int32)
  apart = at[:, None] - at[None, :] - 1
  matrix = jnp.where(apart >= 0, power[jnp.maximum(apart, 0)], 0.0)
  return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)
