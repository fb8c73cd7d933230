"""Credit of a whole batch: what is known before anything is trained."""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax import estimators, objective
from steppo_jax.algorithms import Algorithm
from steppo_jax.batch import Advantages, TokenBatch
from steppo_jax.microbatch import Parts


class Credit(NamedTuple):
  """A batch with its advantages.

  Attributes:
    batch: The batch, its truncated ends resolved and its steps cut into
      segments where the algorithm does so.
    advantages: Advantages and value targets on the steps of `batch`.
    old_value: [M, R, T] critic before the update, None without one.
    ref_logp: [M, R, T] log-probs under the reference policy, or None.
    metrics: (sum, weight) pairs by name.
  """

  batch: Any
  advantages: Advantages
  old_value: chex.Array | None
  ref_logp: chex.Array | None
  metrics: dict[str, Any]


def flat_rows(batch: TokenBatch) -> TokenBatch:
  """[M, R, T] to [M * R, T]."""
  return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch)


def assign(parts: Parts, state, reference, batch, teacher) -> Credit:
  """Evaluates the networks as they are and runs the estimator.

  Args:
    parts: What the update is made of.
    state: `learner.LearnerState`.
    reference: Parameters of the reference policy, or None.
    batch: `learner.Batch`.
    teacher: Parameters of the teacher, or None.

  Returns:
    See `Credit`. With segments as steps the step axis is longer than before.
  """
  row, shape = parts.algorithm, batch.tokens.tokens.shape
  flat, table = estimators.resolve_truncation(
    flat_rows(batch.tokens), batch.table, bootstrap=parts.config.bootstrap
  )
  metrics = _batch_metrics(table)
  old_value = ref_logp = value_bt = None
  if state.critic is not None:
    old_value = parts.over_all_rows(
      batch, functools.partial(parts.values, state.critic)
    )
    value_bt = old_value.reshape(-1, shape[2])
  logp = lambda policy: parts.over_all_rows(
    batch, lambda rows: parts.logp(policy, rows)
  )
  if row.reads_reference:
    ref_logp, _ = logp(reference)
  extras = estimators.Extras()
  if set(row.needs) & {"teacher", "entropy", "reference"}:
    # Before the first step the policy is the one that sampled.
    old_logp, entropy = logp(state.policy)
    gap = lambda a, b: (a - b).reshape(-1, shape[2])
    if "teacher" in row.needs:
      extras = extras._replace(teacher_gap=gap(logp(teacher)[0], old_logp))
    if "reference" in row.needs:
      extras = extras._replace(reference_gap=gap(old_logp, ref_logp))
  if row.segment_share is not None:
    flat, table = estimators.resegment(
      flat,
      table,
      jax.lax.stop_gradient(entropy.reshape(-1, shape[2])),
      share=row.segment_share,
      num_steps=table.live.shape[0]
      + math.ceil(row.segment_share * math.prod(shape)),
    )
  advantages = objective.advantages(row, flat, table, value_bt, extras)
  metrics |= _value_metrics(table, advantages, value_bt, row)
  tokens = jax.tree.map(lambda x: x.reshape(shape), flat)
  batch = batch._replace(tokens=tokens, table=table)
  return Credit(batch, advantages, old_value, ref_logp, metrics)


def _batch_metrics(table):
  """What the steps hold, as they were played."""
  live = table.live.astype(jnp.float32)
  return {
    "batch/reward": (jnp.sum(table.reward * live), jnp.sum(live)),
    "batch/truncated": (
      jnp.sum(table.truncated & table.live).astype(jnp.float32),
      jnp.sum(table.last & table.live).astype(jnp.float32),
    ),
  }


def _value_metrics(table, advantages: Advantages, value_bt, row: Algorithm):
  """How well the critic knew its targets before anything was trained."""
  if row.critic != "step":
    return {}
  live = table.live.astype(jnp.float32)
  target = advantages.target
  value = value_bt.reshape(-1)[table.boundary]
  mean = jnp.sum(target * live) / jnp.maximum(jnp.sum(live), 1.0)
  spread = jnp.sum(live * jnp.square(target - mean))
  error = jnp.sum(live * jnp.square(target - value))
  return {"critic/unexplained_variance": (error, spread)}
