"""Prefill, copy and decode on a cache of blocks: pure, compiled by `programs`.

How many positions are in use is a number that a program is given and not a
shape that it is compiled for: it reads blocks of the cache in a loop until it
has seen the longest sequence. So one program serves every length.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import layout
from jax.sharding import PartitionSpec

from steppo_jax.models import transformer
from steppo_jax.models.config import FULL
from steppo_jax.ops import attention
from steppo_jax.sampler import draw, split
from steppo_jax.sampler.slot_requests import SlotRequests

# Positions that a block may have. Short ones take more turns of a loop; long
# ones are read where few positions are in use, and leave the caches of a core.
BLOCKS = (64, 128, 256)
# Most numbers in a block of keys, unless it is the shortest.
NUMBERS = 2**18
# Most rows that a TPU reads from the cache one by one.
FEW_ROWS = 8


class Cache(NamedTuple):
  """Keys and values of every slot, one array a layer, in blocks of positions.

  Blocks come first, so that a block of all slots lies in one piece. On CPU keys
  lie with the position last, where it is `by_head`: the scores of one new token
  are then sums of whole rows of them, in a half to a quarter of the time.
  Elsewhere positions come first, as loops on a TPU want them: it would turn the
  whole cache around at the begin and the end of every call.

  Attributes:
    k: L arrays, rotated keys by block, slot and position: [C / P, N, KV, D, P]
      by head, [C / P, N, P, KV, D] else.
    v: L arrays [C / P, N, KV, P, D] by head, [C / P, N, P, KV, D] else.
    hidden: [N, W] last hidden state of each slot, which predicts its next
      token.
  """

  k: tuple[chex.Array, ...]
  v: tuple[chex.Array, ...]
  hidden: chex.Array


class Responses(NamedTuple):
  """What each slot has sampled of the response under way.

  Attributes:
    ids: [N, M] int32 sampled tokens, zeros behind.
    behaviour_logp: [N, M] float32 log-probs of those tokens.
    count: [N] int32 number of sampled tokens.
    live: [N] bool, True while the response is unfinished.
  """

  ids: chex.Array
  behaviour_logp: chex.Array
  count: chex.Array
  live: chex.Array


def by_head() -> bool:
  """Whether heads come before positions in the cache; see `Cache`."""
  return jax.default_backend() == "cpu"


def _sizes(cache_v: chex.Array) -> tuple[int, int]:
  """Blocks of the cache and positions of a block."""
  return cache_v.shape[0], cache_v.shape[3 if by_head() else 2]


def no_turns(num_slots: int, max_new_tokens: int) -> Responses:
  """Slots without a response under way."""
  shape = (num_slots, max_new_tokens)
  return Responses(
    jnp.zeros(shape, jnp.int32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros(num_slots, jnp.int32),
    jnp.zeros(num_slots, bool),
  )


def block_of(
  config: transformer.ModelConfig, num_slots: int, context: int, platform: str
) -> int:
  """Positions of a block of the cache; a TPU reads long ones in less time."""
  position = num_slots * config.num_kv_heads * config.head_dim
  fits = [x for x in BLOCKS if platform == "tpu" or x * position <= NUMBERS]
  return min(context, max(fits, default=BLOCKS[0]))


def empty_cache(
  config: transformer.ModelConfig, num_slots: int, context: int
) -> Cache:
  """A cache of zeros for `num_slots` slots of at least `context` positions."""
  n, kv, size = num_slots, config.num_kv_heads, config.head_dim
  block = block_of(config, n, context, jax.default_backend())
  blocks = -(-context // block)
  zeros = lambda *shape: tuple(
    jnp.zeros(shape, config.compute) for _ in range(config.num_layers)
  )
  keys, values = (kv, size, block), (kv, block, size)
  if not by_head():
    keys = values = (block, kv, size)
  return Cache(
    zeros(blocks, n, *keys),
    zeros(blocks, n, *values),
    jnp.zeros((num_slots, config.width), config.compute),
  )


def cache_specs(parts: int) -> Cache:
  """The axes that split each array of a cache; see `split`.

  Args:
    parts: Devices that share the model.
  """
  before = () if by_head() else (None,)  # positions
  heads = (*before, split.AXIS) if parts > 1 else ()
  blocks = PartitionSpec(None, "data", *heads)
  return Cache(blocks, blocks, PartitionSpec("data"))


def _read(x, block, slots):
  """One block [R, ...] of some slots [R], or of all in their order if None."""
  if slots is None:
    return jax.lax.dynamic_index_in_dim(x, block, 0, keepdims=False)
  start = lambda slot: (block, slot, 0, 0, 0)
  row = lambda slot: jax.lax.dynamic_slice(x, start(slot), (1, 1, *x.shape[2:]))
  if jax.default_backend() == "tpu" and len(slots) <= FEW_ROWS:
    # Of a gather, or of rows without a layout of their own, it would turn the
    # whole cache around, in every layer.
    order = layout.Layout(major_to_minor=tuple(range(x.ndim)))
    kept = lambda x: layout.with_layout_constraint(x, order)
    return jnp.concatenate([kept(row(slot))[0] for slot in slots])
  return jax.vmap(row)(slots)[:, 0, 0]


def _attention(q, k, v, slots, positions, window):
  """q [R, T, H, D] against the cache of R slots, by position.

  Blocks are read one after the other, with the softmax rescaled whenever a
  larger score turns up. A layer with a window sees its last `window` positions
  only.
  """
  r, t, h, d = q.shape
  blocks, size = _sizes(v)
  kv = v.shape[2 if by_head() else 3]
  groups = h // kv
  key, value = ("rkdc", "rkcd") if by_head() else ("rckd", "rckd")
  q = q.reshape(r, t, kv, groups, d).transpose(0, 2, 3, 1, 4) * d**-0.5
  q = q.reshape(r, kv, -1, d)

  def scores(block):
    score = jnp.einsum(f"rkqd,{key}->rkqc", q, _read(k, block, slots))
    score = score.reshape(r, kv, groups, t, size).astype(jnp.float32)
    at = block * size + jnp.arange(size)
    visible = at <= positions[..., None]
    if window < FULL:
      visible &= at > positions[..., None] - window
    score = jnp.where(visible[:, None, None], score, attention.HIDDEN)
    return score.reshape(r, kv, -1, size)

  def values(weight, block):
    weight = weight.astype(v.dtype)
    return jnp.einsum(f"rkqc,{value}->rkqd", weight, _read(v, block, slots))

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


def _step(config, params, cache, tokens, positions, slots, parts):
  """Runs tokens [R, T] of `slots` [R]; returns hidden [R, T, W] and cache.

  Without slots there is one row for each of them. Positions at or past the end
  of the cache mark padding: nothing is stored.
  """
  ks, vs = list(cache.k), list(cache.v)
  _, size = _sizes(cache.v[0])

  def attend_at(layer):
    def attend(q, k, v, window=FULL):
      rows = jnp.arange(q.shape[0]) if slots is None else slots
      row, block, inside = rows[:, None], positions // size, positions % size
      # An index array on either side of slices puts the slices last.
      every = (slice(None),) * by_head()
      at = ks[layer].at[block, row, *every, *every, inside]
      ks[layer] = at.set(k, mode="drop")
      at = vs[layer].at[block, row, *every, inside]
      vs[layer] = at.set(v, mode="drop")
      return _attention(q, ks[layer], vs[layer], slots, positions, window)

    return attend

  attends = [attend_at(layer) for layer in range(config.num_layers)]
  hidden = transformer.apply_layerwise(
    split.part(config, parts), params, tokens, positions, attends,
    split.axis(parts),
  )  # fmt: skip
  return hidden, cache._replace(k=tuple(ks), v=tuple(vs))


def _capacity(cache: Cache) -> int:
  """Positions of a slot."""
  blocks, size = _sizes(cache.v[0])
  return blocks * size


def prefill(
  config: transformer.ModelConfig,
  params: Any,
  cache: Cache,
  tokens: chex.Array,
  start: chex.Array,
  length: chex.Array,
  slots: chex.Array,
  used: chex.Array,
  *,
  parts: int,
) -> Cache:
  """Reads new prompt tokens into some slots, R of them at a time.

  Args:
    config: Sizes of the decoder.
    params: Decoder parameters by layer (`transformer.by_layer`).
    cache: The cache; donated by the caller.
    tokens: [G, R, T] int32 new tokens, padded behind.
    start: [G, R] int32 position of the first new token.
    length: [G, R] int32 number of new tokens; 0 on unused rows.
    slots: [G, R] int32 slot of each row; N on unused rows.
    used: [] int32, how many of the G are read. The others cost nothing. The
      same on all devices if several share the model.
    parts: Devices that share the model; see `split`.

  Returns:
    The cache with the new keys, values and last hidden states.
  """
  capacity = _capacity(cache)
  offset = jnp.arange(tokens.shape[2])

  def read(i, cache):
    begin, count, slot = start[i], length[i], slots[i]
    positions = jnp.where(
      offset < count[:, None], begin[:, None] + offset, capacity
    )
    hidden, cache = _step(
      config, params, cache, tokens[i], positions, slot, parts
    )
    last = jnp.maximum(count - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return cache._replace(hidden=cache.hidden.at[slot].set(hidden, mode="drop"))

  return jax.lax.fori_loop(0, used, read, cache)


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
  _, size = _sizes(cache.v[0])

  def one(x, block, source, target):
    part = jax.lax.dynamic_slice(
      x, (block, source, 0, 0, 0), (1, 1, *x.shape[2:])
    )
    return jax.lax.dynamic_update_slice(x, part, (block, target, 0, 0, 0))

  def row(i, arrays):
    def each(block, arrays):
      return jax.tree.map(lambda x: one(x, block, source[i], target[i]), arrays)

    return jax.lax.fori_loop(0, (length[i] + size - 1) // size, each, arrays)

  k, v = jax.lax.fori_loop(0, used, row, (cache.k, cache.v))
  return cache._replace(k=k, v=v)


def _rows(slots, arrays):
  """Rows of `decode`'s arrays; an unused one is neither live nor fresh."""
  used = slots < arrays[2].shape[0]
  read = lambda x: x.at[slots].get(mode="clip")
  turns, asked, fresh, hidden = jax.tree.map(read, arrays)
  return turns._replace(live=turns.live & used), asked, fresh & used, hidden


def _sample(
  config: transformer.ModelConfig,
  params: Any,
  asked: SlotRequests,
  keys: chex.Array,
  cuts: bool,
  axis: str | None,
  hidden: chex.Array,
  turns: Responses,
  where: chex.Array,
) -> Responses:
  """Adds one token to the responses `where`."""
  row = jnp.arange(where.shape[0])
  logits = split.logits(config, params, hidden, axis)
  if cuts:
    if axis is not None:
      logits = jax.lax.all_gather(logits, axis, axis=1, tiled=True)
    logits, axis = draw.nucleus(logits, asked.temperature, asked.top_p), None
  token, logp = draw.tokens(
    logits, keys, turns.count, asked.temperature, axis
  )  # fmt: skip
  at = jnp.where(where, turns.count, turns.ids.shape[1])
  count = turns.count + where
  stopped = jnp.any(token[:, None] == asked.stop_ids, axis=1)
  ended = where & (stopped | (count >= asked.limit))
  return Responses(
    turns.ids.at[row, at].set(token, mode="drop"),
    turns.behaviour_logp.at[row, at].set(logp, mode="drop"),
    count,
    turns.live & ~ended,
  )


def _begun(turns: Responses, fresh, sample, some) -> Responses:
  """With the first tokens of the fresh ones, which there are if `some`."""
  turns = turns._replace(
    count=jnp.where(fresh, 0, turns.count), live=turns.live | fresh
  )
  return jax.lax.cond(some, sample, lambda turns: turns, turns)


def decode(
  config: transformer.ModelConfig,
  params: Any,
  cache: Cache,
  turns: Responses,
  slots: chex.Array,
  asked: SlotRequests,
  fresh: chex.Array,
  stop_at: chex.Array,
  max_steps: chex.Array,
  *,
  seed: int,
  cuts: bool,
  parts: int,
) -> tuple[Cache, Responses, chex.Array, chex.Array]:
  """Samples in live slots side by side until enough of them have ended.

  A slot's draws depend on its key and on how many tokens it has sampled, never
  on when its response began or on the other slots.

  Args:
    config: Sizes of the decoder.
    params: Decoder parameters by layer (`transformer.by_layer`).
    cache: The cache; donated by the caller, like `turns`.
    turns: Responses under way.
    slots: [R] int32 slots that may be live; N on unused rows. If R is N they
      are all, whatever it says.
    asked: What is asked of each slot.
    fresh: [N] bool, slots whose prompt was just read: they start a response.
    stop_at: Number of live slots at which to stop.
    max_steps: Tokens after which to stop.
    seed: Root of all keys.
    cuts: Whether `top_p` is read.
    parts: Devices that share the model; see `split`. As they speak to each
      other for every token, those of the axis "data" then take equally many
      steps, and `stop_at` counts as the sum over them.

  Returns:
    The cache, the responses, and two int32 counts: tokens read side by side
    and the sum over them of live slots.
  """
  capacity, every, axis = _capacity(cache), turns, split.axis(parts)
  over_all = lambda n: n if axis is None else jax.lax.psum(n, "data")
  if slots.shape == turns.live.shape:
    slots, hidden = None, cache.hidden
  else:
    turns, asked, fresh, hidden = _rows(
      slots, (turns, asked, fresh, cache.hidden)
    )
  keys = draw.request_keys(seed, asked.numbers)
  sample = functools.partial(_sample, config, params, asked, keys, cuts, axis)
  too_many = lambda turns: over_all(jnp.sum(turns.live) - stop_at) > 0

  def read_and_sample(state):
    cache, _, turns, steps, work, _ = state
    # The token that ends a turn is not read here but with the next prompt.
    at = jnp.where(turns.live, asked.length + turns.count - 1, capacity)
    last = jnp.maximum(turns.count - 1, 0)[:, None]
    token = jnp.take_along_axis(turns.ids, last, axis=1)
    hidden, cache = _step(
      config, params, cache, token, at[:, None], slots, parts
    )
    hidden = hidden[:, 0]
    work = work + jnp.sum(turns.live, dtype=jnp.int32)
    turns = sample(hidden, turns, turns.live)
    return cache, hidden, turns, steps + 1, work, too_many(turns)

  def goes_on(state):
    *_, steps, _, more = state
    return more & (steps < max_steps)

  begin = lambda turns: sample(hidden, turns, fresh)
  turns = _begun(turns, fresh, begin, over_all(jnp.sum(fresh)) > 0)
  zero = jnp.zeros((), jnp.int32)
  state = cache, hidden, turns, zero, zero, too_many(turns)
  state = jax.lax.while_loop(goes_on, read_and_sample, state)
  cache, hidden, turns, steps, work, _ = state
  if slots is not None:
    write = lambda x, y: x.at[slots].set(y, mode="drop")
    hidden = write(cache.hidden, hidden)
    turns = jax.tree.map(write, every, turns)
  return cache._replace(hidden=hidden), turns, steps, work
