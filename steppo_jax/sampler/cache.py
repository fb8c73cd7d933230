"""Keys and values of every slot, in blocks of positions."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import layout
from jax.sharding import PartitionSpec

from steppo_jax.models.config import ModelConfig
from steppo_jax.sampler import split

# Positions that a block may have. Short ones take more turns of a loop; long
# ones are read where few positions are in use, and leave the caches of a core.
BLOCKS = (64, 128, 256)
# Most numbers in a block of keys, unless it is the shortest.
NUMBERS = 2**18
# Most rows that a TPU reads from the cache one by one.
FEW_ROWS = 8

# Keys and values of one layer: two arrays, or one that has both.
Layer = tuple[chex.Array, ...]


class Cache(NamedTuple):
  """What each slot has read, by layer.

  Blocks come first, so that a block of all slots lies in one piece. On CPU keys
  lie with the position last, where it is `by_head`: the scores of one new token
  are then sums of whole rows of them, in a half to a quarter of the time.
  Elsewhere positions come first, as loops on a TPU want them: it would turn the
  whole cache around at the begin and the end of every call.

  Attributes:
    layers: For each layer its keys, rotated, and its values, by block, slot
      and position: [C / P, N, KV, D, P] and [C / P, N, KV, P, D] by head, both
      [C / P, N, P, KV, D] else. Or one array [C / P, N, P, 2 KV, D] of pages,
      in which the keys of a head come before its values, for the kernel of
      `cache_attention`.
    hidden: [N, W] last hidden state of each slot, which predicts its next
      token.
  """

  layers: tuple[Layer, ...]
  hidden: chex.Array


def by_head() -> bool:
  """Whether heads come before positions in the cache; see `Cache`."""
  return jax.default_backend() == "cpu"


def is_paged(layer: Layer) -> bool:
  """Whether a layer is one array of pages."""
  return len(layer) == 1


def sizes(layer: Layer) -> tuple[int, int]:
  """Blocks of the cache and positions of a block."""
  at = 3 if by_head() and not is_paged(layer) else 2
  return layer[-1].shape[0], layer[-1].shape[at]


def capacity(cache: Cache) -> int:
  """Positions of a slot."""
  blocks, size = sizes(cache.layers[0])
  return blocks * size


def block_of(
  config: ModelConfig, num_slots: int, context: int, platform: str, paged: bool
) -> int:
  """Positions of a block of the cache; a loop on a TPU wants long ones.

  A page has the least whatever the context: kernels read whole tiles.
  """
  if paged:
    return BLOCKS[0]
  position = num_slots * config.num_kv_heads * config.head_dim
  fits = [x for x in BLOCKS if platform == "tpu" or x * position <= NUMBERS]
  return min(context, max(fits, default=BLOCKS[0]))


def empty(
  config: ModelConfig, num_slots: int, context: int, *, paged: bool
) -> Cache:
  """A cache of zeros for `num_slots` slots of at least `context` positions.

  Args:
    config: Sizes of the decoder.
    num_slots: N.
    context: C.
    paged: Whether a layer is one array; see `Cache`.
  """
  n, kv, size = num_slots, config.num_kv_heads, config.head_dim
  block = block_of(config, n, context, jax.default_backend(), paged)
  if paged:
    shapes = [(block, 2 * kv, size)]
  elif by_head():
    shapes = [(kv, size, block), (kv, block, size)]
  else:
    shapes = [(block, kv, size)] * 2
  blocks = -(-context // block)
  zeros = lambda shape: jnp.zeros((blocks, n, *shape), config.compute)
  return Cache(
    tuple(tuple(map(zeros, shapes)) for _ in range(config.num_layers)),
    jnp.zeros((num_slots, config.width), config.compute),
  )


def specs(parts: int) -> Cache:
  """The axes that split each array of a cache; see `split`.

  Args:
    parts: Devices that share the model.
  """
  before = () if by_head() else (None,)  # positions
  heads = (*before, split.AXIS) if parts > 1 else ()
  return Cache(
    PartitionSpec(None, "data", *heads), PartitionSpec("data")
  )  # fmt: skip


def store(
  layer: Layer,
  k: chex.Array,
  v: chex.Array,
  slots: chex.Array,
  positions: chex.Array,
) -> Layer:
  """A layer with the keys and values of more tokens.

  Args:
    layer: One of `Cache.layers`.
    k: [R, T, KV, D] rotated keys.
    v: [R, T, KV, D] values.
    slots: [R] int32.
    positions: [R, T] int32; nothing is stored at or past the last.
  """
  _, size = sizes(layer)
  at = positions // size, slots[:, None]
  inside = positions % size
  if is_paged(layer):
    both = jnp.stack([k, v], axis=3).reshape(*k.shape[:2], -1, k.shape[3])
    return (layer[0].at[*at, inside].set(both, mode="drop"),)
  # An index array on either side of slices puts the slices last.
  every = (slice(None),) * by_head()
  keys, values = layer
  return (
    keys.at[*at, *every, *every, inside].set(k, mode="drop"),
    values.at[*at, *every, inside].set(v, mode="drop"),
  )


def _start(block, slot):
  """Where a block of a slot begins: JAX wants one type, under x64 too."""
  return [jnp.int32(i) for i in (block, slot, 0, 0, 0)]


def read_block(
  x: chex.Array, block: chex.Array, slots: chex.Array | None
) -> chex.Array:
  """One block [R, ...] of some slots [R], or of all in their order if None."""
  if slots is None:
    return jax.lax.dynamic_index_in_dim(x, block, 0, keepdims=False)
  shape = 1, 1, *x.shape[2:]
  row = lambda slot: jax.lax.dynamic_slice(x, _start(block, slot), shape)
  if jax.default_backend() == "tpu" and len(slots) <= FEW_ROWS:
    # Of a gather, or of rows without a layout of their own, it would turn the
    # whole cache around, in every layer.
    order = layout.Layout(major_to_minor=tuple(range(x.ndim)))
    kept = lambda x: layout.with_layout_constraint(x, order)
    return jnp.concatenate([kept(row(slot))[0] for slot in slots])
  return jax.vmap(row)(slots)[:, 0, 0]


def copy(
  cache: Cache,
  source: chex.Array,
  target: chex.Array,
  length: chex.Array,
  used: chex.Array,
) -> Cache:
  """Copies the first positions of some slots into others, one by one.

  Args:
    cache: The cache; donated by the caller.
    source: [R] int32 slots to read.
    target: [R] int32 slots to write, none of which is read later.
    length: [R] int32 number of positions.
    used: [] int32 number of copies.
  """
  _, size = sizes(cache.layers[0])

  def one(x, block, source, target):
    part = jax.lax.dynamic_slice(x, _start(block, source), (1, 1, *x.shape[2:]))
    return jax.lax.dynamic_update_slice(x, part, _start(block, target))

  def row(i, layers):
    def each(block, layers):
      return jax.tree.map(lambda x: one(x, block, source[i], target[i]), layers)

    return jax.lax.fori_loop(0, (length[i] + size - 1) // size, each, layers)

  return cache._replace(
    layers=jax.lax.fori_loop(0, used, row, cache.layers)
  )  # fmt: skip
