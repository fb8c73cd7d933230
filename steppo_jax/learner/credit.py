"""Credit of a whole batch: what is known before anything is trained."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax.algorithms import estimators, objective
from steppo_jax.algorithms.table import Algorithm
from steppo_jax.batch import Advantages, TokenBatch
from steppo_jax.learner.spec import UpdateSpec
from steppo_jax.learner.state import Batch
from steppo_jax.models import heads
from steppo_jax.ops import segments, shaping, stats


class Credit(NamedTuple):
  """A batch with its advantages.

  Attributes:
    batch: The batch, its truncated ends resolved and its steps cut into
      segments where the algorithm does so.
    advantages: Advantages and value targets on the steps of `batch`.
    old_value: [M, R, T] critic before the update, None without one.
    ref_logp: [M, R, T] log-probs under the reference policy, or None.
    hidden: Hidden states of the policy before the update, of `UpdateSpec.keep`;
      None where they are not kept.
    metrics: (sum, weight) pairs by name.
  """

  batch: Batch
  advantages: Advantages
  old_value: chex.Array | None
  ref_logp: chex.Array | None
  hidden: chex.Array | None
  metrics: dict[str, Any]


def flat_rows(batch: TokenBatch) -> TokenBatch:
  """[M, R, T] to [M * R, T]."""
  return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch)


def annealed(algorithm: Algorithm, update: chex.Numeric) -> Algorithm:
  """The row as of an update: its `mix` on the way to 0, if it falls.

  Args:
    algorithm: Row of the table.
    update: Number of updates done; may be traced.
  """
  if not algorithm.mix_updates:
    return algorithm
  options = dict(algorithm.options)
  options["mix"] = shaping.annealed(
    options["mix"], update, updates=algorithm.mix_updates
  )
  return dataclasses.replace(algorithm, options=tuple(options.items()))


def assign(spec: UpdateSpec, state, reference, batch, teacher) -> Credit:
  """Evaluates the networks as they are and runs the estimator.

  Args:
    spec: What the update is made of.
    state: `learner.state.LearnerState`.
    reference: Parameters of the reference policy, or None.
    batch: `learner.state.Batch`. With `batch.teacher` the teacher is the policy
      as it is, reading those rows.
    teacher: Parameters of another teacher, or None.

  Returns:
    See `Credit`. With segments as steps the step axis is longer than before.
  """
  row = annealed(spec.algorithm, state.update)
  shape = batch.tokens.tokens.shape
  flat, table = estimators.resolve_truncation(
    flat_rows(batch.tokens), batch.table, bootstrap=spec.config.bootstrap
  )
  metrics = _batch_metrics(table)
  old_value = ref_logp = value_bt = hidden = None
  if spec.keeps(state.critic, state.policy, batch):
    hidden = spec.keep(batch, functools.partial(spec.hidden, state.policy))
    # No gradient reaches the trunk of a critic that has none of its own.
    read = lambda _, x: heads.read(state.critic, jax.lax.stop_gradient(x))
    old_value = spec.over_all_rows(batch, read, hidden)
  elif state.critic is not None:
    old_value = spec.over_all_rows(
      batch, functools.partial(spec.values, state.critic, state.policy)
    )
  if old_value is not None:
    value_bt = old_value.reshape(-1, shape[2])
  if row.reads_reference:
    ref_logp, _ = spec.over_all_rows(
      batch, functools.partial(spec.logp, reference)
    )
    metrics["reference/logp"] = stats.masked_sum(
      ref_logp, batch.tokens.step_ids > 0
    )
  extras = estimators.Extras()
  if set(row.needs) & {"teacher", "entropy", "reference"}:
    # Before the first step the policy is the one that sampled.
    old_logp, entropy = spec.over_all_rows(
      batch, functools.partial(spec.logp, state.policy), hidden
    )
    gap = lambda a, b: (a - b).reshape(-1, shape[2])
    if "teacher" in row.needs:
      mix = dict(row.options).get("mix", 1.0)
      asked = batch._replace(table=table)
      told, found = _teacher_gap(
        spec, state.policy, asked, flat.step_ids, old_logp, teacher, mix
      )
      extras, metrics = extras._replace(teacher_gap=told), metrics | found
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
  metrics |= _value_metrics(flat, table, advantages, value_bt, row)
  tokens = jax.tree.map(lambda x: x.reshape(shape), flat)
  batch = batch._replace(tokens=tokens, table=table)
  return Credit(batch, advantages, old_value, ref_logp, hidden, metrics)


def _teacher_gap(spec, policy, batch, step_ids, old_logp, teacher, mix):
  """[B, T] how much more likely the teacher finds each action token.

  Exactly 0 where there is no teacher to ask: at steps that `batch.teacher`
  leaves out, and everywhere once `mix` is 0, when nothing is evaluated.
  """
  mix = jnp.asarray(mix, jnp.float32)
  read = batch if batch.teacher is None else batch.teacher
  told = teacher if batch.teacher is None else policy
  used = jnp.where(mix > 0, read.rows_used, 0)
  logp = spec.over_all_rows(
    read._replace(rows_used=used), lambda rows: spec.logp(told, rows)[0]
  ).reshape(-1)
  at = jnp.arange(step_ids.size).reshape(step_ids.shape)
  heard = (step_ids > 0) & (mix > 0)
  metrics = {"teacher/mix": (mix, jnp.ones(()))}
  if batch.teacher is not None:
    covered, live = batch.teacher.covered, batch.table.live
    heard &= covered[step_ids]
    at += batch.teacher.shift[step_ids]
    metrics["teacher/covered"] = (
      jnp.sum(covered & live).astype(jnp.float32),
      jnp.sum(live).astype(jnp.float32),
    )
  old_logp = old_logp.reshape(step_ids.shape)
  gap = jnp.where(heard, logp[jnp.where(heard, at, 0)] - old_logp, 0.0)
  metrics["teacher/gap"] = jnp.sum(gap), jnp.sum(heard).astype(jnp.float32)
  return gap, metrics


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


def _value_metrics(batch, table, advantages: Advantages, value_bt, row):
  """How well the critic knew its targets before anything was trained."""
  if row.critic is None:
    return {}
  if row.critic == "step":
    at, live = table.boundary, table.live
  else:
    at, live = segments.flat_parent(batch.parent), batch.step_ids > 0
  target = jnp.where(live, advantages.target, 0.0)
  value = jnp.where(live, value_bt.reshape(-1)[at], 0.0)
  mean = jnp.sum(target) / jnp.maximum(jnp.sum(live), 1)
  spread = jnp.sum(jnp.square(target - mean), where=live)
  error = jnp.sum(jnp.square(target - value))
  return {"critic/unexplained_variance": (error, spread)}
