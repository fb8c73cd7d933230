"""Prefill and decode against a cache per slot: pure, jitted by the engine."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax.models import transformer
from steppo_jax.models.model_config import FULL
from steppo_jax.ops import attention


class Cache(NamedTuple):
  """Keys and values of every slot, one array a layer.

  Attributes:
    k: L arrays [N, KV, C, D], rotated keys by slot and position.
    v: L arrays [N, KV, C, D].
    hidden: [N, W] last hidden state of each slot, which predicts its next
      token.
  """

  k: tuple[chex.Array, ...]
  v: tuple[chex.Array, ...]
  hidden: chex.Array


class Turns(NamedTuple):
  """What each slot has sampled of the response under way.

  Attributes:
    ids: [N, M] int32 sampled tokens, zeros behind.
    logps: [N, M] float32 log-probs of those tokens.
    count: [N] int32 number of sampled tokens.
    live: [N] bool, True while the response is unfinished.
  """

  ids: chex.Array
  logps: chex.Array
  count: chex.Array
  live: chex.Array


def no_turns(num_slots: int, max_new_tokens: int) -> Turns:
  """Slots without a response under way."""
  shape = (num_slots, max_new_tokens)
  return Turns(
    jnp.zeros(shape, jnp.int32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros(num_slots, jnp.int32),
    jnp.zeros(num_slots, bool),
  )


def empty_cache(
  config: transformer.ModelConfig, num_slots: int, context: int
) -> Cache:
  """A cache of zeros for `num_slots` slots of `context` positions."""
  shape = (num_slots, config.num_kv_heads, context, config.head_dim)
  zeros = lambda: tuple(
    jnp.zeros(shape, config.compute) for _ in range(config.num_layers)
  )
  hidden = jnp.zeros((num_slots, config.width), config.compute)
  return Cache(zeros(), zeros(), hidden)


def _attention(q, k, v, positions, window):
  """q [R, T, H, D] against cached k, v [R, KV, C, D], by position.

  A layer with a window sees its last `window` positions only.
  """
  r, t, h, d = q.shape
  kv, c = k.shape[1:3]
  q = q.reshape(r, t, kv, h // kv, d).transpose(0, 2, 3, 1, 4) * d**-0.5
  score = jnp.einsum("rkqd,rkcd->rkqc", q.reshape(r, kv, -1, d), k)
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


def _step(config, params, cache, tokens, positions, slots, context):
  """Runs tokens [R, T] of `slots` [R]; returns hidden [R, T, W] and cache.

  Positions at or past the end of the cache mark padding: nothing is stored.
  """
  ks, vs = list(cache.k), list(cache.v)
  every_slot = slots is None

  def attend_at(layer):
    def attend(q, k, v, window=FULL):
      rows = jnp.arange(q.shape[0]) if every_slot else slots
      at = (rows[:, None], slice(None), positions)
      # An index array on either side of a slice puts the slice last.
      ks[layer] = ks[layer].at[at].set(k, mode="drop")
      vs[layer] = vs[layer].at[at].set(v, mode="drop")
      keys, values = ks[layer][:, :, :context], vs[layer][:, :, :context]
      if not every_slot:
        keys = keys.at[slots].get(mode="clip")
        values = values.at[slots].get(mode="clip")
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
    params: Decoder parameters.
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
  capacity = cache.k[0].shape[2]
  positions = jnp.where(
    offset < length[:, None], start[:, None] + offset, capacity
  )
  hidden, cache = _step(
    config, params, cache, tokens, positions, slots, context
  )
  last = jnp.maximum(length - 1, 0)
  hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  return cache._replace(hidden=cache.hidden.at[slots].set(hidden, mode="drop"))


def take(cache: Cache, turns: Turns, slots: chex.Array, *, context: int):
  """The first `context` positions and the responses of some slots.

  Args:
    cache: The cache.
    turns: Responses under way.
    slots: [R] int32; N on unused rows, which then have no live response.
    context: Number of positions.

  Returns:
    A cache and responses of R slots.
  """
  used = slots < turns.live.shape[0]
  read = lambda x: x.at[slots].get(mode="clip")
  part = lambda x: read(x[:, :, :context])
  turns = jax.tree.map(read, turns)
  return (
    Cache(
      tuple(part(k) for k in cache.k),
      tuple(part(v) for v in cache.v),
      read(cache.hidden),
    ),
    turns._replace(live=turns.live & used),
  )


def put(
  cache: Cache, turns: Turns, slots: chex.Array, taken: Cache, new: Turns
):
  """Writes back what `take` took; cache and turns are donated by the caller."""
  context = taken.k[0].shape[2]
  write = lambda x, y: x.at[slots].set(y, mode="drop")
  part = lambda x, y: x.at[slots, :, :context].set(y, mode="drop")
  return (
    Cache(
      tuple(map(part, cache.k, taken.k)),
      tuple(map(part, cache.v, taken.v)),
      write(cache.hidden, taken.hidden),
    ),
    jax.tree.map(write, turns, new),
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

  def one(x):
    read = x[:, :, :context].at[source].get(mode="clip")
    return x.at[target, :, :context].set(read, mode="drop")

  return Cache(
    tuple(one(k) for k in cache.k), tuple(one(v) for v in cache.v), cache.hidden
  )


def request_keys(seed: chex.Array, purpose: chex.Array) -> chex.Array:
  """One key a request: the integers of [N, I] folded into the seed in turn."""

  def one(numbers):
    def fold(key, number):
      return jax.random.fold_in(key, number), None

    return jax.lax.scan(fold, jax.random.key(seed), numbers)[0]

  return jax.vmap(one)(purpose)


def _sample(logits, keys, index, temperature):
  """Draws one token a row; [N, V] -> ids and log-probs [N] of the policy.

  The policy is softmax(logits / temperature); at temperature 0, which samples
  nothing, log-probs are those of temperature 1.
  """
  draw = jax.vmap(lambda k, i: jax.random.gumbel(
    jax.random.fold_in(k, i), logits.shape[-1:]))  # fmt: skip
  scale = jnp.where(temperature > 0, temperature, 1.0)[:, None]
  noise = jnp.where(temperature > 0, 1.0, 0.0)[:, None] * draw(keys, index)
  logits = logits / scale
  noisy = logits + noise
  # The first of the largest: an argmax that the CPU backend vectorises.
  number = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  best = noisy == noisy.max(-1, keepdims=True)
  token = jnp.where(best, number, logits.shape[-1] - 1).min(-1)
  chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
  return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def decode(
  config: transformer.ModelConfig,
  params: Any,
  cache: Cache,
  turns: Turns,
  fresh: chex.Array,
  length: chex.Array,
  limit: chex.Array,
  temperature: chex.Array,
  keys: chex.Array,
  stop_at: chex.Array,
  max_steps: chex.Array,
  *,
  end_of_turn_id: int,
  context: int,
) -> tuple[Cache, Turns, chex.Array, chex.Array]:
  """Samples in all live slots side by side until enough of them have ended.

  A slot's draws depend on its key and on how many tokens it has sampled, never
  on when its response began or on the other slots.

  Args:
    config: Sizes of the decoder.
    params: Decoder parameters.
    cache: The cache; donated by the caller.
    turns: Responses under way; donated by the caller.
    fresh: [N] bool, slots whose prompt was just read: they start a response.
    length: [N] int32 prompt tokens in each slot.
    limit: [N] int32 tokens each response may have.
    temperature: [N] float32; 0 takes the most likely token.
    keys: [N] PRNG keys.
    stop_at: Number of live slots at which to stop.
    max_steps: Tokens after which to stop.
    end_of_turn_id: The token that ends a response.
    context: Number of cache positions to attend over.

  Returns:
    The cache, the responses, and two int32 counts: tokens read side by side
    and the sum over them of live slots.
  """
  num_slots = length.shape[0]
  capacity = cache.k[0].shape[2]
  row = jnp.arange(num_slots)

  def sample(hidden, turns, where):
    """Adds one token to the slots `where`."""
    logits = transformer.logits(config, params, hidden)
    token, logp = _sample(logits, keys, turns.count, temperature)
    at = jnp.where(where, turns.count, turns.ids.shape[1])
    count = turns.count + where
    ended = where & ((token == end_of_turn_id) | (count >= limit))
    return Turns(
      turns.ids.at[row, at].set(token, mode="drop"),
      turns.logps.at[row, at].set(logp, mode="drop"),
      count,
      turns.live & ~ended,
    )

  def read_and_sample(state):
    cache, turns, steps, work = state
    # The token that ends a turn is not read here but with the next prompt.
    at = jnp.where(turns.live, length + turns.count - 1, capacity)[:, None]
    last = jnp.maximum(turns.count - 1, 0)[:, None]
    token = jnp.take_along_axis(turns.ids, last, axis=1)
    hidden, cache = _step(config, params, cache, token, at, None, context)
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
