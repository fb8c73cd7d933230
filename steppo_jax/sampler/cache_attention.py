"""Attention of new tokens to what their slots hold: a loop, or a kernel.

How many positions are in use is a number and not a shape, so that one program
serves every length. The loop reads the same blocks of all slots until it has
seen the longest. The kernel, `ragged_paged_attention` of JAX, runs on a TPU and
reads the pages of each slot up to its own length, where they lie; scores and
sums stay on the chip.

Source of the kernel: jax.experimental.pallas.ops.tpu.ragged_paged_attention;
Kwon et al. 2023, arXiv:2309.06180, for pages.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax.models import attend as models_attend
from steppo_jax.models.config import FULL, ModelConfig
from steppo_jax.ops import attention
from steppo_jax.sampler import cache as cache_lib

# Queries and positions that the kernel works on at once. It multiplies a block
# of queries with the keys of every slot that has one in it, so that blocks of
# single tokens are small.
QUERIES, SINGLE_QUERIES, POSITIONS = 128, 8, 512
# Numbers in a line of the chip's memory.
_LANES = 128


def is_paged(name: str, config: ModelConfig) -> bool:
  """Whether a cache has pages, for the kernel.

  Args:
    name: `SamplerConfig.attention`.
    config: Sizes of what one device has; see `split.part`.

  Raises:
    ValueError: there is no such attention, or "pallas" is asked for and the
      kernel does not take the model.
  """
  if models_attend.resolve(name) == "xla":
    return False
  why_not = "its kernel is for TPUs"
  if jax.default_backend() == "tpu":
    why_not = _refused(config)
  if why_not is not None and name == "pallas":
    raise ValueError(f"sampler.attention=pallas: {why_not}")
  return why_not is None


def _refused(config: ModelConfig) -> str | None:
  """Why the kernel does not take heads of these sizes."""
  if config.head_dim % _LANES:
    return (
      f"its kernel takes heads of a multiple of {_LANES} numbers, and the "
      f"model's have head_dim={config.head_dim}"
    )
  words = 2 * config.num_kv_heads * np.dtype(config.compute).itemsize / 4
  if words not in (1, 2, 4) and words % 8:
    return (
      "its kernel takes keys and values of a device that fill 1, 2, 4 or a "
      f"multiple of 8 rows of 32 bits, and num_kv_heads={config.num_kv_heads} "
      f"in {config.compute} fill {words:g}"
    )
  return None


def attend(
  q: chex.Array,
  layer: cache_lib.Layer,
  slots: chex.Array | None,
  positions: chex.Array,
  window: int,
) -> chex.Array:
  """Softmax attention of new tokens, which their slots hold already.

  Args:
    q: [R, T, H, D] queries, rotated.
    layer: Keys and values; see `cache.Cache`.
    slots: [R] int32 slot of each row, N on unused rows; None for all slots in
      their order.
    positions: [R, T] int32 ascending positions of the tokens; at or past the
      last of the cache behind a row's end.
    window: Positions that a token sees, its own included; `FULL` for all.

  Returns:
    [R, T, H, D]; of no meaning behind a row's end.
  """
  if cache_lib.is_paged(layer):
    return _kernel(q, layer[0], slots, positions, window)
  return _loop(q, *layer, slots, positions, window)


def _kernel(q, pages, slots, positions, window):
  """By JAX's kernel, which nothing but a TPU runs.

  Tokens behind a row's end are computed as if they stood behind its last one.
  Nothing is read of them, and they see what no other token does.
  """
  # Of JAX's experiments, which come and go: not for those who do without.
  from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernel

  r, t, h, d = q.shape
  blocks, n, size = pages.shape[:3]
  capacity = blocks * size
  first = jnp.where(positions[:, 0] < capacity, positions[:, 0], 0)
  if slots is None:
    slots = jnp.arange(r)
  # As many pages as such tokens can stand in.
  page = jnp.minimum(jnp.arange(-(-(capacity + t) // size)), blocks - 1)
  table = page * n + jnp.minimum(slots, n - 1)[:, None]

  out = kernel.ragged_paged_attention(
    q.reshape(r * t, h, d),
    pages.reshape(blocks * n, *pages.shape[2:]),
    (first + t).astype(jnp.int32),
    table.astype(jnp.int32),
    t * jnp.arange(r + 1, dtype=jnp.int32),
    jnp.full(1, r, jnp.int32),
    sm_scale=d**-0.5,
    sliding_window=window if window < FULL else None,
    num_queries_per_block=min(r * t, SINGLE_QUERIES if t == 1 else QUERIES),
    num_kv_pages_per_block=min(len(page), -(-POSITIONS // size)),
  )
  return out.reshape(q.shape)


def _loop(q, k, v, slots, positions, window):
  """Block by block, with the softmax rescaled whenever a score is larger."""
  r, t, h, d = q.shape
  blocks, size = cache_lib.sizes((k, v))
  by_head = cache_lib.by_head()
  kv = v.shape[2 if by_head else 3]
  groups = h // kv
  key, value = ("rkdc", "rkcd") if by_head else ("rckd", "rckd")
  read = lambda x, block: cache_lib.read_block(x, block, slots)
  q = q.reshape(r, t, kv, groups, d).transpose(0, 2, 3, 1, 4) * d**-0.5
  q = q.reshape(r, kv, -1, d)

  def scores(block):
    score = jnp.einsum(f"rkqd,{key}->rkqc", q, read(k, block))
    score = score.reshape(r, kv, groups, t, size).astype(jnp.float32)
    at = block * size + jnp.arange(size)
    visible = at <= positions[..., None]
    if window < FULL:
      visible &= at > positions[..., None] - window
    score = jnp.where(visible[:, None, None], score, attention.HIDDEN)
    return score.reshape(r, kv, -1, size)

  def values(weight, block):
    weight = weight.astype(v.dtype)
    return jnp.einsum(f"rkqc,{value}->rkqd", weight, read(v, block))

  def add(block, state):
    top, total, out = state
    score = scores(block)
    higher = jnp.maximum(top, score.max(-1))
    weight = jnp.exp(score - higher[..., None])
    kept = jnp.exp(top - higher)
    out = out * kept[..., None] + values(weight, block)
    return higher, total * kept + weight.sum(-1), out

  if blocks == 1:
    out = values(jax.nn.softmax(scores(0), axis=-1), 0)
  else:
    used = jnp.where(positions < blocks * size, positions, 0).max()
    first = 0
    if window < FULL:
      first = jnp.maximum(positions.min() - window + 1, 0) // size
    nothing = jnp.full((r, kv, groups * t), attention.HIDDEN, jnp.float32)
    start = nothing, jnp.zeros_like(nothing), jnp.zeros(q.shape, jnp.float32)
    _, total, out = jax.lax.fori_loop(first, used // size + 1, add, start)
    out = (out / total[..., None]).astype(v.dtype)
  out = out.reshape(r, kv, groups, t, d)
  return out.transpose(0, 3, 1, 2, 4).reshape(r, t, h, d)
