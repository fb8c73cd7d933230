"""Prefill and decode on a cache of blocks: pure, compiled by `programs`."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax.models import transformer
from steppo_jax.models.config import FULL
from steppo_jax.sampler import cache as cache_lib
from steppo_jax.sampler import cache_attention, draw, split
from steppo_jax.sampler.slot_requests import SlotRequests


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


def _step(config, params, cache, tokens, positions, slots, parts):
  """Runs tokens [R, T] of `slots` [R]; returns hidden [R, T, W] and cache.

  Without slots there is one row for each of them. Positions at or past the end
  of the cache mark padding: nothing is stored.
  """
  layers = list(cache.layers)

  def attend_at(layer):
    def attend(q, k, v, window=FULL):
      rows = jnp.arange(q.shape[0]) if slots is None else slots
      held = cache_lib.store(layers[layer], k, v, rows, positions)
      layers[layer] = held
      return cache_attention.attend(q, held, slots, positions, window)

    return attend

  attends = [attend_at(layer) for layer in range(config.num_layers)]
  hidden = transformer.apply_layerwise(
    split.part(config, parts), params, tokens, positions, attends,
    split.axis(parts),
  )  # fmt: skip
  return hidden, cache._replace(layers=tuple(layers))


def prefill(
  config: transformer.ModelConfig,
  params: Any,
  cache: cache_lib.Cache,
  tokens: chex.Array,
  start: chex.Array,
  length: chex.Array,
  slots: chex.Array,
  used: chex.Array,
  *,
  parts: int,
) -> cache_lib.Cache:
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
  capacity = cache_lib.capacity(cache)
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
  cache: cache_lib.Cache,
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
) -> tuple[cache_lib.Cache, Responses, chex.Array, chex.Array]:
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
  capacity, every, axis = cache_lib.capacity(cache), turns, split.axis(parts)
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
