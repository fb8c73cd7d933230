"""Modes that any row may have, and what tells how far off-policy a batch is.

A mode changes rewards, advantages or weights. Each is one option of the
algorithm (`algorithms.options.AlgorithmConfig`). Off, it leaves the update as
it was, to the bit.
"""

import jax
import jax.numpy as jnp

from steppo_jax.algorithms import objective
from steppo_jax.algorithms.table import Algorithm
from steppo_jax.batch import Advantages, StepTable, TokenBatch
from steppo_jax.ops import floats, losses, ratios, segments, shaping, stats


def pay_for_length(row: Algorithm, table: StepTable):
  """Steps whose rewards pay for long responses, and what they pay."""
  if row.overlong_cache is None:
    return table, {}
  penalty_k = shaping.overlong_penalty(
    table.num_tokens, max_length=row.overlong_length, cache=row.overlong_cache
  )
  penalty_k = jnp.where(table.live, penalty_k, 0.0)
  metrics = {"batch/overlong": stats.masked_sum(penalty_k, table.live)}
  reward_k, penalty_k = floats.of(table.reward, penalty_k)
  return table.replace(reward=reward_k + penalty_k), metrics


def correction(row: Algorithm, flat: TokenBatch, old_logp_t, table):
  """[B, T] weights of the policy before the update beside the sampler's."""
  sampled = flat.step_ids > 0
  z_t = ratios.log_ratio(old_logp_t, flat.behaviour_logp, sampled)
  # No epoch of this update differentiates it; gradients through several do.
  weight_t = ratios.differentiable_rollout_weight(
    z_t,
    flat.step_ids,
    num_steps=table.live.shape[0],
    kind=row.rollout_correction,
    low=row.rollout_low,
    high=row.rollout_high,
  )
  return weight_t, {
    "policy/behaviour_gap": stats.masked_sum(jnp.abs(z_t), sampled),
    "policy/behaviour_k3": stats.masked_sum(k3(z_t), sampled),
    "policy/rollout_weight": stats.masked_sum(weight_t, sampled),
  }


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
  most = floats.constant(row.max_staleness, jnp.int32)
  stale_k = acted_k & (update - table.version > most)
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
  advantage = floats.wide(advantages.advantage)
  bound = floats.constant(bound, advantage.dtype)
  return advantages.replace(advantage=jnp.clip(advantage, -bound, bound))


def focus(row: Algorithm, flat: TokenBatch, energy_t):
  """[B, T] weights of thoughts and actions, and what they are made of."""
  sampled = flat.step_ids > 0
  thought = flat.reasoning & sampled
  energy_t = energy_t.reshape(sampled.shape)
  weight_t = shaping.focus_weight(
    energy_t,
    thought,
    sampled & ~thought,
    alpha=row.focus_alpha,
    beta=row.focus_beta,
  )
  count = jnp.sum(sampled).astype(jnp.float32)
  return weight_t, {
    "batch/reasoning": (jnp.sum(thought).astype(jnp.float32), count),
    "reference/energy": stats.masked_sum(energy_t, sampled & ~thought),
    "reference/focus_weight": (jnp.sum(weight_t), count),
  }


def weights(row: Algorithm, focus_t, factor_t, acting: TokenBatch, table):
  """[M, R, T] weights of tokens in the loss, None where all weigh the same.

  Args:
    row: Row of the table.
    focus_t: [B, T] of `focus`, or None.
    factor_t: [B, T] of `correction`, or None.
    acting: [M, R, T] the tokens that the loss is averaged over: what masks them
      comes before.
    table: Their steps [S].
  """
  ids = acting.step_ids
  weight = None
  if focus_t is not None:
    focus_t = focus_t.reshape(ids.shape)
    weight = jnp.stack(
      [_evened(row, *part, table) for part in zip(focus_t, ids, strict=True)]
    )
  if factor_t is None:
    return weight
  factor = factor_t.reshape(ids.shape)
  return factor if weight is None else weight * factor


def _evened(row: Algorithm, weight_t, ids, table):
  """[R, T] weights of a mini-batch that leave the loss of a constant as it is.

    w agg(1) / agg(w)

  With a mean as aggregation that is the weighted mean agg(w loss) / agg(w), in
  whatever microbatches it is computed.
  """
  mask = ids > 0
  agg = lambda x_t: objective.aggregate(row, x_t, ids, table)[0]
  # Added up in one order, so that weights of 1 stay 1 to the bit.
  both = jnp.stack([weight_t, mask.astype(weight_t.dtype)])
  total, of_ones = jax.vmap(agg)(both)
  share = of_ones / jnp.where(total == 0, 1.0, total)
  return jnp.where(mask, weight_t * share, 0.0)


def k3(z):
  """exp(z) - 1 - z of log-ratios: estimates KL(sampler || policy), in nats."""
  return losses.kl_k3(jnp.zeros_like(z), z)


def drift(z_k, table: StepTable, update, staleness: int):
  """How far from the policy that sampled it the trained one has come.

  Args:
    z_k: [S] mean log-ratio of each step's tokens, of the policy as the last
      epoch found it over the one that sampled them, or that
      `rollout_correction` puts in its place.
    table: The steps [S], with `version` where `staleness` is above 0.
    update: Number of updates done before this one; may be traced.
    staleness: K, most updates that a step may lie behind.

  Returns:
    (sum, weight) pairs and numbers by name, of the ratios r = exp(z) of the
    steps that act: quantiles of r; the effective sample size
    (sum r)^2 / (n sum r^2), the share of the n steps whose mean weight would be
    as certain if all weights were equal (Kong 1992), 1 where all are; and with
    K > 0 for each age 0 to K that occurs the median of r, its 99 % quantile and
    the mean of k3.
  """
  acted_k = table.live & (table.num_tokens > 0)
  found = {
    f"policy/ratio_q{percent:02d}": _quantile(z_k, acted_k, percent)
    for percent in (1, 50, 99)
  }
  ratio_k = losses.bounded_exp(jnp.where(acted_k, z_k, 0.0))
  ratio_k = jnp.where(acted_k, ratio_k, 0.0)
  squares = jnp.sum(jnp.square(ratio_k))
  found["policy/effective_sample_size"] = (
    jnp.square(jnp.sum(ratio_k)),
    squares * jnp.sum(acted_k).astype(ratio_k.dtype),
  )
  for age in range(staleness + 1 if staleness else 0):
    at_k = acted_k & (update - table.version == age)
    there = jnp.any(at_k).astype(ratio_k.dtype)
    for percent in (50, 99):
      ratio = _quantile(z_k, at_k, percent)
      found[f"policy/ratio_q{percent}_staleness/{age}"] = ratio * there, there
    found[f"policy/k3_staleness/{age}"] = stats.masked_sum(k3(z_k), at_k)
  return found


def _quantile(z_k, at_k, percent):
  """A quantile of the ratios of some steps; 1, as if nothing moved, of none."""
  quantile = jnp.nanquantile(jnp.where(at_k, z_k, jnp.nan), percent / 100)
  return losses.bounded_exp(jnp.where(jnp.any(at_k), quantile, 0.0))
