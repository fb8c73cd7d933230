"""Attention under the interval mask of a packed row."""

import functools

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats

# Finite, so that a token that sees nothing (padding) stays free of NaN.
HIDDEN = -1e30
# Rows of more blocks go through one loop instead of an unrolled program, which
# was faster from five blocks on (8 rows of 320 and more tokens on CPU).
UNROLLED_BLOCKS = 4


def interval_mask(subtree_end: chex.Array) -> chex.Array:
  """Who sees whom: [B, T, T] bool, [b, i, j] True where i may read j.

  Token j is visible to token i exactly if `j <= i < subtree_end[j]`.

  Args:
    subtree_end: [B, T] int32 in-row index one past the last descendant.

  Source: Euler-tour interval test for ancestors; the mask of decision 2 in
  docs/design.md.
  """
  i = jnp.arange(subtree_end.shape[1], dtype=jnp.int32)
  j = i[None, :]
  causal = (j <= i[:, None])[None]
  return causal & (i[None, :, None] < subtree_end[:, None, :])


def interval_blocks(
  subtree_end: chex.Array, *, block_q: int, block_k: int
) -> chex.Array:
  """Which blocks of queries may see which blocks of keys, in O(T) and memory.

  A key block counts if it begins before the query block ends and one of its
  subtrees reaches beyond the query block's begin. No visible pair is missed;
  where `block_k` divides `block_q`, no other block counts.

  Args:
    subtree_end: [B, T] int32 in-row index one past the last descendant; T is a
      multiple of both blocks.
    block_q: Queries in a block.
    block_k: Keys in a block.

  Returns:
    [B, T / block_q, T / block_k] bool.

  Raises:
    AssertionError: T is not a multiple of both blocks.
  """
  b, t = subtree_end.shape
  chex.assert_is_divisible(t, block_q)
  chex.assert_is_divisible(t, block_k)
  # An unused slot is visible to nobody, however late in the row it lies.
  own = jnp.arange(t, dtype=jnp.int32)[None]
  reach = jnp.where(subtree_end > own, subtree_end, 0)
  reach = reach.reshape(b, t // block_k, block_k).max(-1)
  begin = jnp.arange(0, t, block_q, dtype=jnp.int32)[None, :, None]
  key = jnp.arange(0, t, block_k, dtype=jnp.int32)[None, None, :]
  causal = key < begin + block_q
  return causal & (begin < reach[:, None, :])


def varying_alike(*arrays: chex.Array) -> list[chex.Array]:
  """The arrays, each varying over every mesh axis that one varies over.

  Inside a `jax.shard_map` a loop or kernel must not mix arrays that are split
  over an axis with arrays that are the same along it; outside it this does
  nothing.
  """
  varying = functools.reduce(jnp.add, [x.ravel()[0] > 0 for x in arrays])
  # Compiles to x, and so does its transpose.
  return [x + jnp.where(varying, 0, 0).astype(x.dtype) for x in arrays]


def interval_attention(
  q: chex.Array,
  k: chex.Array,
  v: chex.Array,
  subtree_end: chex.Array,
  *,
  block: int,
) -> chex.Array:
  """Softmax attention under the interval mask, by blocks of queries.

  Rows of up to 4 blocks are one unrolled program in which a block of queries
  reads the keys up to its own end, differentiable any number of times. Longer
  rows are a loop over the pairs of blocks in which some row of the batch has a
  visible pair. It keeps log-sum-exps for the backward pass and no weights, so
  that memory grows with T and not with T²; it has a gradient, but no
  forward-mode and no second derivative (make `block` larger for those).

  Where every row is plain causal (`subtree_end` is T everywhere), this is
  `jax.nn.dot_product_attention(q, k, v, is_causal=True)`; that the rows are
  plain is data, so the choice is the caller's.

  Args:
    q: [B, T, H, D] queries.
    k: [B, T, KV, D] keys; H is a multiple of KV.
    v: [B, T, KV, D] values.
    subtree_end: [B, T] int32 in-row index one past the last descendant.
    block: Number of queries handled at once.

  Returns:
    [B, T, H, D]. A token that sees nothing gets a finite value of no meaning.

  Raises:
    AssertionError: the shapes do not fit each other.
  """
  return _by_blocks(q, k, v, subtree_end, None, block)


def window_attention(
  q: chex.Array,
  k: chex.Array,
  v: chex.Array,
  subtree_end: chex.Array,
  positions: chex.Array,
  window: chex.Numeric,
  *,
  block: int,
) -> chex.Array:
  """`interval_attention` to tokens less than `window` positions behind.

  Positions are depths, so that a token sees the same ancestors whatever stands
  between them in the row. Long rows leave out pairs of blocks that lie further
  apart.

  Args:
    q: [B, T, H, D] queries.
    k: [B, T, KV, D] keys; H is a multiple of KV.
    v: [B, T, KV, D] values.
    subtree_end: [B, T] int32 in-row index one past the last descendant.
    positions: [B, T] int32 depth of each token.
    window: Tokens that one sees, itself included; may be traced.
    block: Number of queries handled at once.

  Returns:
    [B, T, H, D]. A token that sees nothing gets a finite value of no meaning.

  Raises:
    AssertionError: the shapes do not fit each other.
  """
  chex.assert_equal_shape([positions, subtree_end])
  near = (positions, jnp.asarray(window, jnp.int32))
  return _by_blocks(q, k, v, subtree_end, near, block)


def _by_blocks(q, k, v, subtree_end, near, block):
  """Attention [B, T, H, D]; `near` is None or (positions, window)."""
  chex.assert_rank([q, k, v, subtree_end], [4, 4, 4, 2])
  chex.assert_equal_shape([k, v])
  b, t, h, d = q.shape
  kv = k.shape[2]
  # [B, KV, G, T, D] and [B, KV, T, D]: large batched matrix products.
  q = q.reshape(b, t, kv, h // kv, d).transpose(0, 2, 3, 1, 4) * d**-0.5
  k = k.transpose(0, 2, 1, 3)
  v = v.transpose(0, 2, 1, 3)
  if t <= block * UNROLLED_BLOCKS:
    out = _short_rows(q, k, v, subtree_end, near, block)
  else:
    q, k, v, end, *rest = varying_alike(q, k, v, subtree_end, *(near or ()))
    out = _long_rows(q, k, v, end, tuple(rest) or None, block)
  return out.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)


def _short_rows(q, k, v, subtree_end, near, block):
  """Attention [B, KV, G, T, D]; one softmax per block of queries."""
  b, kv, g, t, d = q.shape
  outputs = []
  for start in range(0, t, block):
    stop = min(start + block, t)
    i = jnp.arange(start, stop, dtype=jnp.int32)[:, None]
    j = jnp.arange(stop, dtype=jnp.int32)[None, :]
    visible = (j <= i)[None] & (i[None] < subtree_end[:, None, :stop])
    if near is not None:
      positions, window = near
      behind = positions[:, start:stop, None] - positions[:, None, :stop]
      visible &= behind < window
    qb = q[:, :, :, start:stop].reshape(b, kv, -1, d)
    score = jnp.einsum("bkqd,bkjd->bkqj", qb, k[:, :, :stop])
    score = score.reshape(b, kv, g, stop - start, stop)
    score = jnp.where(visible[:, None, None], score, HIDDEN)
    weight = jax.nn.softmax(floats.wide(score), axis=-1)
    weight = weight.astype(v.dtype).reshape(b, kv, -1, stop)
    out = jnp.einsum("bkqj,bkjd->bkqd", weight, v[:, :, :stop])
    outputs.append(out.reshape(b, kv, g, stop - start, d))
  return jnp.concatenate(outputs, axis=3)


def _long_rows(q, k, v, subtree_end, near, block):
  """Attention [B, KV, G, T, D]; one loop over visible pairs of blocks."""
  b, kv, g, t, d = q.shape
  n = -(-t // block)
  pad = n * block - t
  q = jnp.pad(q, [(0, 0)] * 3 + [(0, pad), (0, 0)])
  k, v = (jnp.pad(x, [(0, 0)] * 2 + [(0, pad), (0, 0)]) for x in (k, v))
  end = jnp.pad(subtree_end, [(0, 0), (0, pad)])
  if near is not None:
    near = jnp.pad(near[0], [(0, 0), (0, pad)]), near[1]
  # Blocks lead: [N, B, KV, G * block, D] and [N, B, KV, block, D].
  q = q.reshape(b, kv, g, n, block, d).transpose(3, 0, 1, 2, 4, 5)
  q = q.reshape(n, b, kv, g * block, d)
  k, v = (
    x.reshape(b, kv, n, block, d).transpose(2, 0, 1, 3, 4) for x in (k, v)
  )
  out = _paired(q, k, v, end, near, block)
  out = out.reshape(n, b, kv, g, block, d).transpose(1, 2, 3, 0, 4, 5)
  return out.reshape(b, kv, g, n * block, d)[:, :, :, :t]


def _pairs(end, near, block):
  """Query block and key block of every visible pair, and their number."""
  seen = interval_blocks(end, block_q=block, block_k=block)
  if near is not None:
    position = near[0].reshape(end.shape[0], -1, block)
    first, last = position.min(-1), position.max(-1)
    seen &= first[:, :, None] - last[:, None, :] < near[1]
  seen = seen.any(0)
  n = seen.shape[0]
  i, j = jnp.nonzero(seen, size=n * (n + 1) // 2, fill_value=0)
  return i.astype(jnp.int32), j.astype(jnp.int32), seen.sum(dtype=jnp.int32)


def _pair_scores(q, k, end, near, i, j, block):
  """Scores [B, KV, G * block, block] in float32, and which are visible."""
  score = jnp.einsum(
    "bkqd,bkjd->bkqj", q[i], k[j], preferred_element_type=floats.common(q)
  )
  b = end.shape[0]
  within = jnp.arange(block, dtype=i.dtype)
  row = (i * block + within)[:, None]
  column = (j * block + within)[None, :]
  part = lambda x, at: jax.lax.dynamic_slice_in_dim(x, at * block, block, 1)
  visible = (column <= row)[None] & (row[None] < part(end, j)[:, None, :])
  if near is not None:
    positions, window = near
    behind = part(positions, i)[:, :, None] - part(positions, j)[:, None, :]
    visible &= behind < window
  visible = jnp.broadcast_to(
    visible[:, None, None], (b, 1, q.shape[3] // block, block, block)
  )
  return score, visible.reshape(b, 1, -1, block)


def _constant(value, x):
  # `jnp.full` would not vary over the axes of a shard_map, as a carry must.
  kind = floats.common(x).type
  return jnp.where(x == 0, kind(value), kind(value))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _paired(q, k, v, end, near, block):
  return _paired_forward(q, k, v, end, near, block)[0]


def _paired_forward(q, k, v, end, near, block):
  qi, kj, count = _pairs(end, near, block)

  def add(p, carry):
    top, total, out = carry
    i, j = qi[p], kj[p]
    score, visible = _pair_scores(q, k, end, near, i, j, block)
    score = jnp.where(visible, score, HIDDEN)
    new = jnp.maximum(top[i], score.max(-1))
    weight = jnp.where(visible, jnp.exp(score - new[..., None]), 0.0)
    shrink = jnp.exp(top[i] - new)
    read = jnp.einsum(
      "bkqj,bkjd->bkqd",
      weight.astype(v.dtype),
      v[j],
      preferred_element_type=floats.common(v),
    )
    total = total.at[i].set(total[i] * shrink + weight.sum(-1))
    out = out.at[i].set(out[i] * shrink[..., None] + read)
    return top.at[i].set(new), total, out

  carry = (_constant(HIDDEN, q[..., 0]), _constant(0, q[..., 0]))
  top, total, out = jax.lax.fori_loop(0, count, add, (*carry, _constant(0, q)))
  total = jnp.where(total > 0, total, 1.0)
  out = (out / total[..., None]).astype(q.dtype)
  saved = (q, k, v, end, near, out, top + jnp.log(total), (qi, kj, count))
  return out, saved


def _paired_backward(block, saved, dout):
  q, k, v, end, near, out, log_total, (qi, kj, count) = saved
  # Σⱼ wᵢⱼ dwᵢⱼ, the inner product in the gradient of a softmax.
  kind = floats.common(q)
  inner = (dout.astype(kind) * out.astype(kind)).sum(-1)

  def add(p, carry):
    dq, dk, dv = carry
    i, j = qi[p], kj[p]
    score, visible = _pair_scores(q, k, end, near, i, j, block)
    weight = jnp.where(visible, jnp.exp(score - log_total[i][..., None]), 0.0)
    product = functools.partial(jnp.einsum, preferred_element_type=kind)
    dweight = product("bkqd,bkjd->bkqj", dout[i], v[j])
    dscore = (weight * (dweight - inner[i][..., None])).astype(q.dtype)
    weight = weight.astype(v.dtype)
    dq = dq.at[i].add(product("bkqj,bkjd->bkqd", dscore, k[j]))
    dk = dk.at[j].add(product("bkqj,bkqd->bkjd", dscore, q[i]))
    dv = dv.at[j].add(product("bkqj,bkqd->bkjd", weight, dout[i]))
    return dq, dk, dv

  zeros = tuple(_constant(0, x) for x in (q, k, v))
  dq, dk, dv = jax.lax.fori_loop(0, count, add, zeros)
  dq, dk, dv = dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)
  return dq, dk, dv, None, None


_paired.defvjp(_paired_forward, _paired_backward)
