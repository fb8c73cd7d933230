"""Attention under the interval mask as a Pallas kernel for TPU.

Scores are held transposed, [keys, queries]: what belongs to a query (maximum,
sum, log-sum-exp) is then a row along the lanes, reduced over sublanes, and is
stored without padding.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from steppo_jax.ops import attention

_LANES = 128
# Scalar memory of a core (1 MiB on v5e) less what the program needs itself.
_FETCH_MAP_BYTES = 2**20 - 2**14


def interval_attention_tpu(
  q: chex.Array,
  k: chex.Array,
  v: chex.Array,
  subtree_end: chex.Array,
  *,
  block_q: int,
  block_k: int,
  interpret: bool,
) -> chex.Array:
  """Softmax attention under the interval mask, by blocks, on a TPU.

  The forward pass keeps a running maximum and sum and stores one log-sum-exp a
  query; the backward pass computes the weights again from it, once for the
  queries and once for the keys. A pair of blocks without a visible pair is
  neither computed nor fetched (`attention.interval_blocks`). Products
  accumulate in float32; weights are rounded to the type of `v` before they are
  multiplied.

  The program runs on one device: under a mesh of several, wrap it in
  `jax.shard_map` (Mosaic kernels are not partitioned automatically).

  Args:
    q: [B, T, H, D] queries, float32 or bfloat16.
    k: [B, T, KV, D] keys of the same type; H is a multiple of KV.
    v: [B, T, KV, D] values of the same type.
    subtree_end: [B, T] int32 in-row index one past the last descendant.
    block_q: Queries in a block; a multiple of 128 unless interpreted.
    block_k: Keys in a block; a multiple of 128 unless interpreted.
    interpret: True runs the kernel on any device, slowly.

  Returns:
    [B, T, H, D]; zeros where a token sees nothing.

  Raises:
    AssertionError: the shapes or types do not fit each other.
    ValueError: a block is not a multiple of 128, or there are so many pairs of
      blocks that their table exceeds the scalar memory.

  Source: Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4, restricted to
  the visible pairs of blocks.
  """
  chex.assert_rank([q, k, v, subtree_end], [4, 4, 4, 2])
  chex.assert_equal_shape([k, v])
  chex.assert_trees_all_equal_dtypes(q, k, v)
  b, t, _, d = q.shape
  if not interpret and (block_q % _LANES or block_k % _LANES):
    raise ValueError(
      f"block_q={block_q} and block_k={block_k} must be multiples of {_LANES}"
    )
  longest = -(-t // _LANES) * _LANES
  block_q, block_k = min(block_q, longest), min(block_k, longest)
  pad = -t % math.lcm(block_q, block_k)
  table = 4 * b * ((t + pad) // block_q) * ((t + pad) // block_k)
  if not interpret and table > _FETCH_MAP_BYTES:
    raise ValueError(
      f"{b} rows of {t} tokens in blocks of block_q={block_q} and "
      f"block_k={block_k} need {table} bytes of scalar memory, more than "
      f"{_FETCH_MAP_BYTES}: take larger blocks or fewer rows"
    )
  # [B, H, T, D]: a block of one head is one tile.
  q, k, v = (
    jnp.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)]).transpose(0, 2, 1, 3)
    for x in (q * d**-0.5, k, v)
  )
  end = jnp.pad(subtree_end, [(0, 0), (0, pad)]).astype(jnp.int32)
  q, k, v, end = attention.varying_alike(q, k, v, end)
  out = _attention(q, k, v, end, block_q, block_k, interpret)
  return out.transpose(0, 2, 1, 3)[:, :t]


def fetch_map(seen: chex.Array) -> chex.Array:
  """Block that each step of a loop over blocks fetches, and if it is used.

  A step without a visible pair names the block of a neighbour, so that nothing
  is copied for it: the last one used before, or else the first one to come.

  Args:
    seen: [B, N, M] bool, does step m of loop n have a visible pair?

  Returns:
    [B * N * M] int32: the block, or -1 - block where it is not used.
  """
  step = jnp.arange(seen.shape[-1])
  last = jax.lax.cummax(jnp.where(seen, step, -1), axis=2)
  first = jnp.argmax(seen, axis=-1, keepdims=True)
  idle = jnp.where(last < 0, first, last)
  return jnp.where(seen, step, -1 - idle).astype(jnp.int32).reshape(-1)


def _block(entry):
  return jnp.where(entry < 0, -1 - entry, entry)


def _dot(x, y, contract):
  """x and y summed over axis `contract[0]` and `contract[1]`, in float32."""
  axes = ((contract[:1], contract[1:]), ((), ()))
  return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _scores(q_ref, k_ref, end_ref, i, j):
  """Scores [keys, queries] of query block i and key block j, and the mask."""
  score = _dot(k_ref[...], q_ref[...], (1, 1))
  keys, queries = score.shape
  key = j * keys + jax.lax.broadcasted_iota(jnp.int32, score.shape, 0)
  query = i * queries + jax.lax.broadcasted_iota(jnp.int32, score.shape, 1)
  end = end_ref[...].reshape(keys, 1)
  return score, (key <= query) & (query < end)


def _forward_kernel(
  fetch, q_ref, k_ref, v_ref, end_ref, out_ref, lse_ref, top, total, acc
):
  b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
  steps = pl.num_programs(3)

  @pl.when(j == 0)
  def _():
    top[...] = jnp.full_like(top, attention.HIDDEN)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)

  @pl.when(fetch[(b * pl.num_programs(2) + i) * steps + j] >= 0)
  def _():
    score, visible = _scores(q_ref, k_ref, end_ref, i, j)
    score = jnp.where(visible, score, attention.HIDDEN)
    new = jnp.maximum(top[...], score.max(0, keepdims=True))
    weight = jnp.where(visible, jnp.exp(score - new), 0.0)
    shrink = jnp.exp(top[...] - new)
    total[...] = total[...] * shrink + weight.sum(0, keepdims=True)
    # [D, queries]
    read = _dot(v_ref[...], weight.astype(v_ref.dtype), (0, 0))
    acc[...] = acc[...] * shrink + read
    top[...] = new

  @pl.when(j == steps - 1)
  def _():
    weight = jnp.where(total[...] > 0, total[...], 1.0)
    out_ref[...] = (acc[...] / weight).T.astype(out_ref.dtype)
    lse_ref[...] = top[...] + jnp.log(weight)


def _gradients(refs, i, j):
  """Weights and gradients of scores [keys, queries], in the type of v."""
  q_ref, k_ref, v_ref, end_ref, dout_ref, lse_ref, inner_ref = refs
  score, visible = _scores(q_ref, k_ref, end_ref, i, j)
  weight = jnp.where(visible, jnp.exp(score - lse_ref[...]), 0.0)
  dweight = _dot(v_ref[...], dout_ref[...], (1, 1))
  dscore = weight * (dweight - inner_ref[...])
  return weight.astype(v_ref.dtype), dscore.astype(v_ref.dtype)


def _queries_kernel(fetch, *refs):
  *refs, dq_ref, dq = refs
  k_ref = refs[1]
  b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
  steps = pl.num_programs(3)

  @pl.when(j == 0)
  def _():
    dq[...] = jnp.zeros_like(dq)

  @pl.when(fetch[(b * pl.num_programs(2) + i) * steps + j] >= 0)
  def _():
    _, dscore = _gradients(refs, i, j)
    dq[...] += _dot(dscore, k_ref[...], (0, 0))

  @pl.when(j == steps - 1)
  def _():
    dq_ref[...] = dq[...].astype(dq_ref.dtype)


def _keys_kernel(fetch, *refs):
  *refs, dk_ref, dv_ref, dk, dv = refs
  q_ref, dout_ref = refs[0], refs[4]
  b, j = pl.program_id(0), pl.program_id(2)
  g, i = pl.program_id(3), pl.program_id(4)
  steps = pl.num_programs(4)

  @pl.when((g == 0) & (i == 0))
  def _():
    dk[...] = jnp.zeros_like(dk)
    dv[...] = jnp.zeros_like(dv)

  @pl.when(fetch[(b * pl.num_programs(2) + j) * steps + i] >= 0)
  def _():
    weight, dscore = _gradients(refs, i, j)
    dk[...] += _dot(dscore, q_ref[...], (1, 0))
    dv[...] += _dot(weight, dout_ref[...], (1, 0))

  @pl.when((g == pl.num_programs(3) - 1) & (i == steps - 1))
  def _():
    dk_ref[...] = dk[...].astype(dk_ref.dtype)
    dv_ref[...] = dv[...].astype(dv_ref.dtype)


def _specs(index, block_q, block_k, d):
  """Block specs of a query, its scalar, a key and a scalar of a key.

  `index` turns grid indices and the fetch map into (row, head, query block, key
  head, key block).
  """

  def spec(shape, place):
    return pl.BlockSpec(shape, lambda *ids: place(*index(*ids)))

  return (
    spec((None, None, block_q, d), lambda b, h, i, kv, j: (b, h, i, 0)),
    spec((None, None, 1, block_q), lambda b, h, i, kv, j: (b, h, 0, i)),
    spec((None, None, block_k, d), lambda b, h, i, kv, j: (b, kv, j, 0)),
    spec((None, 1, block_k), lambda b, h, i, kv, j: (b, 0, j)),
  )


def _like(function, *arrays):
  """Shapes, types and, in a `shard_map`, mesh axes of a function's results."""
  return jax.eval_shape(function, *arrays)


def _call(kernel, grid, in_specs, out_specs, outputs, scratch, interpret):
  """A compiled kernel whose first argument is the fetch map."""
  inner = 1 if len(grid) == 4 else 2
  semantics = ("parallel",) * 3 + ("arbitrary",) * inner
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=grid,
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    ),
    out_shape=outputs,
    compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
    interpret=interpret,
    name=kernel.__name__.strip("_"),
  )


def _by_query(q, k, seen, block_q, block_k):
  """Grid, specs and fetch map of a loop over keys for each query block."""
  n, m = seen.shape[1:]
  group = q.shape[1] // k.shape[1]

  def index(b, h, i, j, fetch):
    # `//` would spend instructions on signs.
    return b, h, i, jax.lax.div(h, group), _block(fetch[(b * n + i) * m + j])

  grid = (*q.shape[:2], n, m)
  specs = _specs(index, block_q, block_k, q.shape[3])
  return grid, specs, fetch_map(seen)


def _by_key(q, k, seen, block_q, block_k):
  """Grid, specs and fetch map of a loop over queries for each key block."""
  n, m = seen.shape[1:]
  group = q.shape[1] // k.shape[1]

  def index(b, kv, j, g, i, fetch):
    return b, kv * group + g, _block(fetch[(b * m + j) * n + i]), kv, j

  grid = (*k.shape[:2], m, group, n)
  specs = _specs(index, block_q, block_k, q.shape[3])
  return grid, specs, fetch_map(seen.swapaxes(1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(q, k, v, end, block_q, block_k, interpret):
  return _forward(q, k, v, end, block_q, block_k, interpret)[0]


def _forward(q, k, v, end, block_q, block_k, interpret):
  d = q.shape[3]
  seen = attention.interval_blocks(end, block_q=block_q, block_k=block_k)
  grid, specs, fetch = _by_query(q, k, seen, block_q, block_k)
  query, scalar, key, tail = specs
  out, lse = _call(
    _forward_kernel,
    grid,
    [query, key, key, tail],
    [query, scalar],
    _like(lambda q: (q, q[:, :, None, :, 0].astype(jnp.float32)), q),
    [(1, block_q), (1, block_q), (d, block_q)],
    interpret,
  )(fetch, q, k, v, end[:, None])
  return out, (q, k, v, end, out, lse)


def _backward(block_q, block_k, interpret, saved, dout):
  q, k, v, end, out, lse = saved
  d = q.shape[3]
  inner = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
  arrays = (q, k, v, end[:, None], dout, lse, inner[:, :, None])
  seen = attention.interval_blocks(end, block_q=block_q, block_k=block_k)

  grid, specs, fetch = _by_query(q, k, seen, block_q, block_k)
  query, scalar, key, tail = specs
  inputs = [query, key, key, tail, query, scalar, scalar]
  outputs = _like(lambda q: (q,), q)
  (dq,) = _call(
    _queries_kernel, grid, inputs, [query], outputs, [(block_q, d)], interpret
  )(fetch, *arrays)

  grid, specs, fetch = _by_key(q, k, seen, block_q, block_k)
  query, scalar, key, tail = specs
  inputs = [query, key, key, tail, query, scalar, scalar]
  outputs = _like(lambda *kv: kv, k, v)
  dk, dv = _call(
    _keys_kernel, grid, inputs, [key] * 2, outputs, [(block_k, d)] * 2,
    interpret,
  )(fetch, *arrays)  # fmt: skip
  return dq, dk, dv, None


_attention.defvjp(_forward, _backward)
