"""Prefill and decode against a cache per slot: pure, jitted by the engine."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax.models import transformer
from steppo_jax.models.config import FULL
from steppo_jax.ops import attention
from steppo_jax.sampler import draw


class Cache(NamedTuple):
  """Keys and values of every slot, one array a layer.

  Keys lie with the position last: the scores of one new token are then sums of
  whole rows of them. On CPU that takes a half to a quarter of the time.

  Attributes:
    k: L arrays [N, KV, D, C], rotated keys by slot and position.
    v: L arrays [N, KV, C, D].
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


def no_turns(num_slots: int, max_new_tokens: int) -> Responses:
  """Slots without a response under way."""
  shape = (num_slots, max_new_tokens)
  return Responses(
    jnp.zeros(shape, jnp.int32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros(num_slots, jnp.int32),
    jnp.zeros(num_slots, bool),
  )


def empty_cache(
  config: transformer.ModelConfig, num_slots: int, context: int
) -> Cache:
  """A cache of zeros for `num_slots` slots of `context` positions."""
  n, kv, size = num_slots, config.num_kv_heads, config.head_dim
  zeros = lambda *shape: tuple(
    jnp.zeros(shape, config.compute) for _ in range(config.num_layers)
  )
  keys, values = zeros(n, kv, size, context), zeros(n, kv, context, size)
  hidden = jnp.zeros((num_slots, config.width), config.compute)
  return Cache(keys, values, hidden)


def _rows(x, slots, sizes):
  """x[slots] cut to `sizes`, read in one go; slots past the end are clipped."""
  row = lambda slot: jax.lax.dynamic_slice(x, (slot, 0, 0, 0), (1, *sizes))[0]
  return jax.vmap(row)(slots)


def _keys(k, slots, context):
  return _rows(k, slots, (*k.shape[1:3], context))


def _values(v, slots, context):
  return _rows(v, slots, (v.shape[1], context, v.shape[3]))


def _attention(q, k, v, positions, window):
  """q [R, T, H, D] against k [R, KV, D, C] and v [R, KV, C, D], by position.

  A layer with a window sees its last `window` positions only.
  """
  r, t, h, d = q.shape
  kv, c = v.shape[1:3]
  q = q.reshape(r, t, kv, h // kv, d).transpose(0, 2, 3, 1, 4) * d**-0.5
  score = jnp.einsum("rkqd,rkdc->rkqc", q.reshape(r, kv, -1, d), k)
  score = score.reshape(r, kv, h // kv, t, c)
  at = jnp.arange(c)
  visible = at <= positions[..., None]
  if window < FULL:
    visible &= at > positions[..., None] - window
  score = score.astype(jnp.float32)
  score = jnp.where(visible[:, None, None], score, attention.HIDDEN)
  weight = jax.nn.softmax(score, axis=-1).reshape(r, kv, -1, c)
  weight = weight.astype(v.dtype)
  out = jnp.einsum("rkqc,rkcd->rkqd", weight, v)
  out = out.reshape(r, kv, h // kv, t, d)
  return out.transpose(0, 3, 1, 2, 4).reshape(r, t, h, d)


def _step(config, params, cache, tokens, positions, slots=None, context=None):
  """Runs tokens [R, T] of `slots` [R]; returns hidden [R, T, W] and cache.

  Without slots there is one row for each of them, and all of the cache is seen.
  Positions at or past the end of the cache mark padding: nothing is stored.
  """
  ks, vs = list(cache.k), list(cache.v)
  every_slot = slots is None

  def attend_at(layer):
    def attend(q, k, v, window=FULL):
      rows = jnp.arange(q.shape[0]) if every_slot else slots
      row, every = rows[:, None], slice(None)
      # An index array on either side of slices puts the slices last.
      at = ks[layer].at[row, every, every, positions]
      ks[layer] = at.set(k, mode="drop")
      at = vs[layer].at[row, every, positions]
      vs[layer] = at.set(v, mode="drop")
      keys, values = ks[layer], vs[layer]
      if not every_slot:
        keys = _keys(keys, slots, context)
        values = _values(values, slots, context)
      return _attention(q, keys, values, positions, window)

    return attend

  attends = [attend_at(layer) for layer in range(config.num_layers)]
  hidden = transformer.apply_layerwise(
    config, params, tokens, positions, attends
  )
  return hidden, Cache(tuple(ks), tuple(vs), cache.hidden)


def prefill(
  config: transformer.ModelConfig,
  params: Any,
  cache: Cache,
  tokens: chex.Array,
  start: chex.Array,
  length: chex.Array,
  slots: chex.Array,
  *,
  context: int,
) -> Cache:
  """Reads new prompt tokens into some slots.

  Args:
    config: Sizes of the decoder.
    params: Decoder parameters by layer (`transformer.by_layer`).
    cache: The cache; donated by the caller.
    tokens: [R, T] int32 new tokens, padded behind.
    start: [R] int32 position of the first new token.
    length: [R] int32 number of new tokens; 0 on unused rows.
    slots: [R] int32 slot of each row; N on unused rows.
    context: Number of cache positions to attend over.

  Returns:
    The cache with the new keys, values and last hidden states.
  """
  offset = jnp.arange(tokens.shape[1])
  capacity = cache.v[0].shape[2]
  positions = jnp.where(
    offset < length[:, None], start[:, None] + offset, capacity
  )
  hidden, cache = _step(
    config, params, cache, tokens, positions, slots, context
  )
  last = jnp.maximum(length - 1, 0)
  hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  return cache._replace(hidden=cache.hidden.at[slots].set(hidden, mode="drop"))


def take(
  cache: Cache, turns: Responses, slots: chex.Array | None, *, context: int
):
  """The first `context` positions and the responses of some slots.

  Args:
    cache: The cache.
    turns: Responses under way.
    slots: [R] int32; N on unused rows, which then have no live response. None
      for all slots in their order.
    context: Number of positions.

  Returns:
    A cache and responses of R slots.
  """
  if slots is None:
    keys = tuple(k[..., :context] for k in cache.k)
    values = tuple(v[:, :, :context] for v in cache.v)
    return Cache(keys, values, cache.hidden), turns
  used = slots < turns.live.shape[0]
  read = lambda x: x.at[slots].get(mode="clip")
  turns = jax.tree.map(read, turns)
  part = Cache(
    tuple(_keys(k, slots, context) for k in cache.k),
    tuple(_values(v, slots, context) for v in cache.v),
    read(cache.hidden),
  )
  return part, turns._replace(live=turns.live & used)


def put(
  cache: Cache,
  turns: Responses,
  slots: chex.Array | None,
  taken: Cache,
  new: Responses,
):
  """Writes back what `take` took; cache and turns are donated by the caller."""
  if slots is None:
    write = lambda x, y: jax.lax.dynamic_update_slice(x, y, (0,) * x.ndim)
    return jax.tree.map(write, cache, taken), new
  write = lambda x, y: x.at[slots].set(y, mode="drop")
  hidden, turns = jax.tree.map(
    write, (cache.hidden, turns), (taken.hidden, new)
  )
  return _put(cache, slots, taken)._replace(hidden=hidden), turns


def _put(cache: Cache, slots, part):
  """Writes the first positions of some slots."""
  c = part.v[0].shape[2]
  return Cache(
    tuple(
      x.at[slots, :, :, :c].set(y, mode="drop")
      for x, y in zip(cache.k, part.k, strict=True)
    ),
    tuple(
      x.at[slots, :, :c].set(y, mode="drop")
      for x, y in zip(cache.v, part.v, strict=True)
    ),
    cache.hidden,
  )


def copy(
  cache: Cache, source: chex.Array, target: chex.Array, *, context: int
) -> Cache:
  """Copies what some slots hold into others, all read before one is written.

  Args:
    cache: The cache; donated by the caller.
    source: [R] int32 slots to read.
    target: [R] int32 slots to write; N on unused rows.
    context: Number of positions to copy.
  """
  keys = tuple(_keys(k, source, context) for k in cache.k)
  values = tuple(_values(v, source, context) for v in cache.v)
  return _put(cache, target, Cache(keys, values, cache.hidden))


def decode(
  config: transformer.ModelConfig,
  params: Any,
  cache: Cache,
  turns: Responses,
  fresh: chex.Array,
  length: chex.Array,
  limit: chex.Array,
  temperature: chex.Array,
  keys: chex.Array,
  stop_ids: chex.Array,
  stop_at: chex.Array,
  max_steps: chex.Array,
) -> tuple[Cache, Responses, chex.Array, chex.Array]:
  """Samples in all live slots side by side until enough of them have ended.

  A slot's draws depend on its key and on how many tokens it has sampled, never
  on when its response began or on the other slots.

  Args:
    config: Sizes of the decoder.
    params: Decoder parameters by layer (`transformer.by_layer`).
    cache: The cache, all of which is attended to: no longer than it must be.
    turns: Responses under way.
    fresh: [N] bool, slots whose prompt was just read: they start a response.
    length: [N] int32 prompt tokens in each slot.
    limit: [N] int32 tokens each response may have.
    temperature: [N] float32; 0 takes the most likely token.
    keys: [N] PRNG keys.
    stop_ids: [N, K] int32, the tokens that end each response; -1 for none.
    stop_at: Number of live slots at which to stop.
    max_steps: Tokens after which to stop.

  Returns:
    The cache, the responses, and two int32 counts: tokens read side by side
    and the sum over them of live slots.
  """
  capacity = cache.v[0].shape[2]
  row = jnp.arange(length.shape[0])

  def sample(hidden, turns, where):
    """Adds one token to the slots `where`."""
    logits = transformer.logits(config, params, hidden)
    token, logp = draw.tokens(logits, keys, turns.count, temperature)
    at = jnp.where(where, turns.count, turns.ids.shape[1])
    count = turns.count + where
    stopped = jnp.any(token[:, None] == stop_ids, axis=1)
    ended = where & (stopped | (count >= limit))
    return Responses(
      turns.ids.at[row, at].set(token, mode="drop"),
      turns.behaviour_logp.at[row, at].set(logp, mode="drop"),
      count,
      turns.live & ~ended,
    )

  def read_and_sample(state):
    cache, turns, steps, work = state
    # The token that ends a turn is not read here but with the next prompt.
    at = jnp.where(turns.live, length + turns.count - 1, capacity)[:, None]
    last = jnp.maximum(turns.count - 1, 0)[:, None]
    token = jnp.take_along_axis(turns.ids, last, axis=1)
    hidden, cache = _step(config, params, cache, token, at)
    cache = cache._replace(hidden=hidden[:, 0])
    work = work + jnp.sum(turns.live, dtype=jnp.int32)
    return cache, sample(cache.hidden, turns, turns.live), steps + 1, work

  def goes_on(state):
    _, turns, steps, _ = state
    return (jnp.sum(turns.live) > stop_at) & (steps < max_steps)

  turns = turns._replace(
    count=jnp.where(fresh, 0, turns.count), live=turns.live | fresh
  )
  turns = jax.lax.cond(
    jnp.any(fresh),
    lambda turns: sample(cache.hidden, turns, fresh),
    lambda turns: turns,
    turns,
  )
  zero = jnp.zeros((), jnp.int32)
  return jax.lax.while_loop(
    goes_on, read_and_sample, (cache, turns, zero, zero)
  )
