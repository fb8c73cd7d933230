"""Modes that any row may have: what changes rewards, advantages and weights.

Each is one option of the algorithm (`algorithms.options.AlgorithmConfig`). Off,
it leaves the update as it was, to the bit.
"""

import jax.numpy as jnp

from steppo_jax.algorithms.table import Algorithm
from steppo_jax.batch import Advantages, StepTable, TokenBatch
from steppo_jax.ops import ratios, segments, shaping, stats


def pay_for_length(row: Algorithm, table: StepTable):
  """Steps whose rewards pay for long responses, and what they pay."""
  if row.overlong_cache is None:
    return table, {}
  penalty_k = shaping.overlong_penalty(
    table.num_tokens, max_length=row.overlong_length, cache=row.overlong_cache
  )
  penalty_k = jnp.where(table.live, penalty_k, 0.0)
  metrics = {"batch/overlong": stats.masked_sum(penalty_k, table.live)}
  return table.replace(reward=table.reward + penalty_k), metrics


def correction(row: Algorithm, flat: TokenBatch, old_logp_t, table):
  """[B, T] weights of the policy before the update beside the sampler's."""
  sampled = flat.step_ids > 0
  z_t = ratios.log_ratio(old_logp_t, flat.behaviour_logp, sampled)
  weight_t = ratios.rollout_weight(
    z_t,
    flat.step_ids,
    num_steps=table.live.shape[0],
    kind=row.rollout_correction,
    low=row.rollout_low,
    high=row.rollout_high,
  )
  return weight_t, {
    "policy/behaviour_gap": stats.masked_sum(jnp.abs(z_t), sampled),
    "policy/rollout_weight": stats.masked_sum(weight_t, sampled),
  }


def times(weight, factor):
  """A weight of tokens times a factor; the factor where there is none."""
  return factor if weight is None else weight * factor


def fresh(row: Algorithm, flat: TokenBatch, table, update):
  """Tokens and table without the actions of steps that are too old."""
  if row.max_staleness is None:
    return flat, table, {}
  if table.version is None:
    raise ValueError(
      "algorithm.max_staleness needs table.version: pack the trajectories with "
      "packing.rows.pack"
    )
  acted_k = table.live & (table.num_tokens > 0)
  stale_k = acted_k & (update - table.version > row.max_staleness)
  kept_t = segments.to_tokens(~stale_k, flat.step_ids)
  flat = flat.replace(step_ids=jnp.where(kept_t, flat.step_ids, 0))
  table = table.replace(num_tokens=jnp.where(stale_k, 0, table.num_tokens))
  count = lambda x: jnp.sum(x).astype(jnp.float32)
  return flat, table, {"batch/stale": (count(stale_k), count(acted_k))}


def clipped(row: Algorithm, advantages: Advantages) -> Advantages:
  """Advantages held within a distance of 0; targets stay."""
  bound = row.advantage_clip
  if bound is None:
    return advantages
  held = jnp.clip(advantages.advantage, -bound, bound)
  return advantages.replace(advantage=held)


def focus(row: Algorithm, flat: TokenBatch, energy_t, shape):
  """[M, R, T] weights of tokens in the loss, and what they are made of."""
  sampled = flat.step_ids > 0
  thought = flat.reasoning & sampled
  energy_t = energy_t.reshape(sampled.shape)
  weight_t = shaping.focus_weight(
    energy_t,
    thought,
    sampled & ~thought,
    alpha=row.focus_alpha,
    beta=row.focus_beta,
  ).reshape(shape)
  # The weights of a mini-batch are divided by their own mean, so that its mean
  # over tokens is the weighted one, in whatever microbatches it is computed.
  total = jnp.sum(weight_t, axis=(1, 2), keepdims=True)
  count = jnp.sum(sampled.reshape(shape), axis=(1, 2), keepdims=True)
  share = count / jnp.where(total == 0, 1.0, total)
  count = jnp.sum(count).astype(jnp.float32)
  metrics = {
    "batch/reasoning": (jnp.sum(thought).astype(jnp.float32), count),
    "reference/energy": stats.masked_sum(energy_t, sampled & ~thought),
    "reference/focus_weight": (jnp.sum(total), count),
  }
  return weight_t * share, metrics
