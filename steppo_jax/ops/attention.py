"""Attention under the interval mask of a packed row."""

import chex
import jax
import jax.numpy as jnp

# Finite, so that a token that sees nothing (padding) stays free of NaN.
_HIDDEN = -1e30


def interval_mask(subtree_end: chex.Array) -> chex.Array:
  """Who sees whom: [B, T, T] bool, [b, i, j] True where i may read j.

  Token j is visible to token i exactly if `j <= i < subtree_end[j]`.

  Args:
    subtree_end: [B, T] int32 in-row index one past the last descendant.

  Source: Euler-tour interval test for ancestors; the mask of decision 2 in
  docs/design.md.
  """
  i = jnp.arange(subtree_end.shape[1])
  j = i[None, :]
  return (j <= i[:, None]) & (i[:, None] < subtree_end[:, None, :])


def interval_attention(
  q: chex.Array,
  k: chex.Array,
  v: chex.Array,
  subtree_end: chex.Array,
  *,
  block: int,
) -> chex.Array:
  """Softmax attention under the interval mask, by blocks of queries.

  A block of queries reads only the keys up to its own end, so that the upper
  triangle is never computed and no [T, T] array exists for rows longer than
  one block.

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
  chex.assert_rank([q, k, v, subtree_end], [4, 4, 4, 2])
  chex.assert_equal_shape([k, v])
  b, t, h, d = q.shape
  kv = k.shape[2]
  # [B, KV, G, T, D] and [B, KV, T, D]: large batched matrix products.
  q = q.reshape(b, t, kv, h // kv, d).transpose(0, 2, 3, 1, 4) * d**-0.5
  k = k.transpose(0, 2, 1, 3)
  v = v.transpose(0, 2, 1, 3)
  outputs = []
  for start in range(0, t, block):
    stop = min(start + block, t)
    i = jnp.arange(start, stop)[:, None]
    j = jnp.arange(stop)[None, :]
    visible = (j <= i) & (i < subtree_end[:, None, :stop])
    qb = q[:, :, :, start:stop].reshape(b, kv, -1, d)
    score = jnp.einsum("bkqd,bkjd->bkqj", qb, k[:, :, :stop])
    score = score.reshape(b, kv, h // kv, stop - start, stop)
    score = jnp.where(visible[:, None, None], score, _HIDDEN)
    weight = jax.nn.softmax(score.astype(jnp.float32), axis=-1)
    weight = weight.astype(v.dtype).reshape(b, kv, -1, stop)
    out = jnp.einsum("bkqj,bkjd->bkqd", weight, v[:, :, :stop])
    outputs.append(out.reshape(b, kv, h // kv, stop - start, d))
  out = jnp.concatenate(outputs, axis=3)
  return out.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)
