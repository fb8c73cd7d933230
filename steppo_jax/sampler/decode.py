"""Prefill and decode against a cache per slot: pure, jitted by the engine."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax.models import transformer
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


def empty_cache(
  config: transformer.ModelConfig, num_slots: int, context: int
) -> Cache:
  """A cache of zeros for `num_slots` slots of `context` positions."""
  shape = (num_slots, config.num_kv_heads, context, config.head_dim)
  zeros = tuple(jnp.zeros(shape) for _ in range(config.num_layers))
  return Cache(
    zeros,
    tuple(jnp.zeros(shape) for _ in range(config.num_layers)),
    jnp.zeros((num_slots, config.width)),
  )


def _attention(q, k, v, positions):
  """q [R, T, H, D] against cached k, v [R, KV, C, D], by position."""
  r, t, h, d = q.shape
  kv, c = k.shape[1:3]
  q = q.reshape(r, t, kv, h // kv, d).transpose(0, 2, 3, 1, 4) * d**-0.5
  score = jnp.einsum("rkqd,rkcd->rkqc", q.reshape(r, kv, -1, d), k)
  score = score.reshape(r, kv, h // kv, t, c)
  visible = jnp.arange(c) <= positions[..., None]
  score = jnp.where(visible[:, None, None], score, attention.HIDDEN)
  weight = jax.nn.softmax(score, axis=-1).reshape(r, kv, -1, c)
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
    def attend(q, k, v):
      rows = jnp.arange(q.shape[0]) if every_slot else slots
      at = (rows[:, None], slice(None), positions)
      # An index array on either side of a slice puts the slice last.
      ks[layer] = ks[layer].at[at].set(k, mode="drop")
      vs[layer] = vs[layer].at[at].set(v, mode="drop")
      keys, values = ks[layer][:, :, :context], vs[layer][:, :, :context]
      if not every_slot:
        keys = keys.at[slots].get(mode="clip")
        values = values.at[slots].get(mode="clip")
      return _attention(q, keys, values, positions)

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
  length: chex.Array,
  limit: chex.Array,
  temperature: chex.Array,
  keys: chex.Array,
  *,
  end_of_turn_id: int,
  max_new_tokens: int,
  context: int,
) -> tuple[Cache, chex.Array, chex.Array, chex.Array]:
  """Samples in all slots at once until each ends its turn or its limit.

  Args:
    config: Sizes of the decoder.
    params: Decoder parameters.
    cache: The cache; donated by the caller.
    length: [N] int32 tokens already in each slot.
    limit: [N] int32 tokens each slot may sample; 0 leaves a slot out.
    temperature: [N] float32; 0 takes the most likely token.
    keys: [N] PRNG keys.
    end_of_turn_id: The token that ends a turn.
    max_new_tokens: Static upper bound of `limit`.
    context: Number of cache positions to attend over.

  Returns:
    The cache, token ids [N, M], their float32 log-probs [N, M] and the number
    of tokens sampled in each slot [N].
  """
  num_slots = length.shape[0]
  capacity = cache.k[0].shape[2]

  def sample(cache, ids, logps, count, live, t):
    logits = transformer.logits(params, cache.hidden)
    index = jnp.full((num_slots,), t)
    token, logp = _sample(logits, keys, index, temperature)
    ids = ids.at[:, t].set(jnp.where(live, token, 0))
    logps = logps.at[:, t].set(jnp.where(live, logp, 0.0))
    count = count + live
    live = live & (token != end_of_turn_id) & (count < limit)
    return cache, ids, logps, count, live, t + 1

  def read_and_sample(state):
    cache, ids, logps, count, live, t = state
    # The token that ends a turn is not read here but with the next prompt.
    at = jnp.where(live, length + count - 1, capacity)[:, None]
    token = jax.lax.dynamic_slice_in_dim(ids, t - 1, 1, axis=1)
    hidden, cache = _step(config, params, cache, token, at, None, context)
    cache = cache._replace(hidden=hidden[:, 0])
    return sample(cache, ids, logps, count, live, t)

  ids = jnp.zeros((num_slots, max_new_tokens), jnp.int32)
  logps = jnp.zeros((num_slots, max_new_tokens), jnp.float32)
  count = jnp.zeros_like(length)
  state = sample(cache, ids, logps, count, limit > 0, 0)
  state = jax.lax.while_loop(lambda s: jnp.any(s[4]), read_and_sample, state)
  cache, ids, logps, count, _, _ = state
  return cache, ids, logps, count
