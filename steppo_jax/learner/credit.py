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
from steppo_jax.batch import Advantages, StepTable, TokenBatch
from steppo_jax.learner import modes
from steppo_jax.learner.spec import UpdateSpec
from steppo_jax.learner.state import Batch
from steppo_jax.ops import floats, segments, shaping, stats


class Credit(NamedTuple):
  """A batch with its advantages.

  Attributes:
    batch: The batch, its truncated ends resolved and its steps cut into
      segments where the algorithm does so.
    acting: The same for the policy: without steps that are too old for it, and
      with the log-probs that its ratio starts from.
    reading: The same as the critic reads it: `batch` itself, or the rows of its
      prompts, where the critic reads those. Its table is for the critic's
      epochs, which read no `bootstrap_at`: that is of the prompts as played.
    advantages: Advantages and value targets on the steps of `batch`.
    old_value: [M, R, T] critic before the update, two of them where it has two
      heads, None without one. Where the critic reads prompts only the values
      that are asked for are there, and 0 elsewhere.
    read_value: The same at the tokens of `reading`.
    ref_logp: [M, R, T] log-probs under the reference policy, or None.
    hidden: Hidden states of the policy before the update, of `UpdateSpec.keep`;
      None where they are not kept.
    weight: [M, R, T] weight of each action token of `acting` in the loss, or
      None; see `modes.weights`.
    steps: The steps as they were played, before any was cut into segments;
      otherwise the table of `batch`.
    teacher_gap: [B, T] of `estimators.Extras`, or None.
    metrics: (sum, weight) pairs by name.
  """

  batch: Batch
  acting: Batch
  reading: Batch
  advantages: Advantages
  old_value: chex.Array | None
  read_value: chex.Array | None
  ref_logp: chex.Array | None
  hidden: chex.Array | None
  weight: chex.Array | None
  steps: StepTable
  teacher_gap: chex.Array | None
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
    batch: `learner.state.Batch`. With `batch.teacher` the teacher reads those
      rows in place of the batch's.
    teacher: Parameters of the teacher, or None: the policy as it is, where
      there are rows of a teacher.

  Returns:
    See `Credit`. With segments as steps the step axis is longer than before.
  """
  row = annealed(spec.algorithm, state.update)
  teacher = state.policy if teacher is None else teacher
  shape = batch.tokens.tokens.shape
  flat, table = estimators.resolve_truncation(
    flat_rows(batch.tokens), batch.table, bootstrap=spec.config.bootstrap
  )
  metrics = _batch_metrics(table)
  table, found = modes.pay_for_length(row, table)
  metrics |= found
  ref_logp = focus_t = factor_t = None
  reading = _reading(spec, state, batch)
  hidden, read_value = _values(spec, state, reading)
  old_value = _in_place(batch, reading, read_value)
  value_bt = jax.tree.map(lambda x: x.reshape(-1, shape[2]), old_value)
  if row.reads_reference:
    ref_logp, focus_t, found = _reference(spec, row, reference, batch, flat)
    metrics |= found
  extras, centre_t = estimators.Extras(), flat.behaviour_logp
  corrected = row.rollout_correction
  if corrected or set(row.needs) & {"teacher", "entropy", "reference"}:
    # Before the first step the policy is the one that sampled.
    old_logp, entropy = spec.over_all_rows(
      batch, functools.partial(spec.logp, state.policy), hidden
    )
    if corrected:
      centre_t = old_logp.reshape(-1, shape[2])
      factor_t, found = modes.correction(row, flat, centre_t, table)
      metrics |= found
    if "teacher" in row.needs:
      told, found = _teacher_gap(
        spec, row, batch._replace(table=table), flat, old_logp, teacher
      )
      extras, metrics = extras._replace(teacher_gap=told), metrics | found
    if "reference" in row.needs:
      gap = (old_logp - ref_logp).reshape(-1, shape[2])
      extras = extras._replace(reference_gap=gap)
  steps = table
  if row.segment_share is not None:
    flat, table = _segments(row, flat, table, entropy)
  advantages = objective.advantages(
    row, flat, table, value_bt, extras, differentiable=spec.differentiable
  )
  advantages = modes.clipped(row, advantages)
  metrics |= _value_metrics(flat, table, advantages, value_bt, row)
  in_rows = lambda rows: jax.tree.map(lambda x: x.reshape(shape), rows)
  batch = batch._replace(tokens=in_rows(flat), table=table)
  reading = batch if reading.prompts is None else _of_prompts(batch)
  acting, table, found = modes.fresh(
    row, flat.replace(behaviour_logp=centre_t), table, state.update
  )
  metrics |= found
  acting = batch._replace(tokens=in_rows(acting), table=table)
  weight = modes.weights(row, focus_t, factor_t, acting.tokens, table)
  return Credit(
    batch, acting, reading, advantages, old_value, read_value, ref_logp,
    hidden, weight, steps, extras.teacher_gap, metrics,
  )  # fmt: skip


def _reading(spec, state, batch: Batch) -> Batch:
  """The batch as the critic reads it."""
  if batch.prompts is None or state.critic is None:
    return batch._replace(prompts=None)
  row = spec.algorithm
  if row.critic != "step" or row.segment_share is not None:
    raise ValueError(
      "this row of the table has values inside of responses, which the rows of "
      "batch.prompts leave out: call put_batch without prompts"
    )
  if spec.keeps(state.critic, state.policy, batch):
    # Its hidden states are those of the policy, which reads everything.
    return batch._replace(prompts=None)
  return _of_prompts(batch)


def _of_prompts(batch: Batch) -> Batch:
  """The batch with the rows of its prompts in place of its own."""
  prompts = batch.prompts
  return batch._replace(
    tokens=prompts.tokens,
    rows_used=prompts.rows_used,
    table=batch.table.replace(
      boundary=prompts.boundary, bootstrap_at=prompts.bootstrap_at
    ),
  )


def _in_place(batch: Batch, reading: Batch, read_value):
  """Values where the batch has the tokens whose values are asked for."""
  if reading.prompts is None:
    return read_value
  shape = batch.tokens.tokens.shape
  at, new = batch.table, reading.table
  found = read_value.reshape(-1)
  # Slots without a step, and those without a bootstrap, are put nowhere.
  out = jnp.zeros(math.prod(shape), found.dtype)
  for mask, where, there in (
    (at.live, at.boundary, new.boundary),
    (at.live & at.truncated, at.bootstrap_at, new.bootstrap_at),
  ):
    where = jnp.where(mask, where, out.size)
    out = out.at[where].set(found[there], mode="drop")
  return out.reshape(shape)


def _values(spec, state, batch):
  """Hidden states that are kept, and the critic's values; None without one."""
  if spec.keeps(state.critic, state.policy, batch):
    hidden = spec.keep(batch, functools.partial(spec.hidden, state.policy))
    read = functools.partial(spec.read_values, state.critic)
    return hidden, spec.over_all_rows(batch, read, hidden)
  if state.critic is None:
    return None, None
  return None, spec.over_all_rows(
    batch, functools.partial(spec.values, state.critic, state.policy)
  )


def _segments(row: Algorithm, flat: TokenBatch, table, entropy):
  """Segments as steps: see `estimators.resegment`."""
  more = math.ceil(row.segment_share * flat.tokens.size)
  return estimators.resegment(
    flat,
    table,
    jax.lax.stop_gradient(entropy.reshape(flat.tokens.shape)),
    share=row.segment_share,
    num_steps=table.live.shape[0] + more,
  )


def _reference(spec, row: Algorithm, reference, batch, flat: TokenBatch):
  """Log-probs of the reference, weights of tokens if the row has some."""
  focus_t, metrics = None, {}
  if row.focus_alpha is None:
    of = lambda rows: spec.logp(reference, rows)[0]
    ref_logp = spec.over_all_rows(batch, of)
  else:
    ref_logp, energy_t = spec.over_all_rows(
      batch, lambda rows: spec.logp_and_energy(reference, rows)
    )
    focus_t, metrics = modes.focus(row, flat, energy_t)
  found = stats.masked_sum(ref_logp, batch.tokens.step_ids > 0)
  return ref_logp, focus_t, metrics | {"reference/logp": found}


def _teacher_gap(spec, row, batch, flat: TokenBatch, old_logp, teacher):
  """[B, T] how much more likely the teacher finds each action token.

  Exactly 0 where there is no teacher to ask: at steps that `batch.teacher`
  leaves out, and everywhere once `mix` is 0, when nothing is evaluated.
  """
  step_ids, mix = flat.step_ids, dict(row.options).get("mix", 1.0)
  mix = jnp.asarray(mix, floats.common(mix))
  read = batch if batch.teacher is None else batch.teacher
  spec = spec.on(read.tokens)
  used = jnp.where(mix > 0, read.rows_used, 0)
  logp = spec.over_all_rows(
    read._replace(rows_used=used), lambda rows: spec.logp(teacher, rows)[0]
  ).reshape(-1)
  at = jnp.arange(step_ids.size, dtype=jnp.int32).reshape(step_ids.shape)
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
  live = table.live.astype(table.reward.dtype)
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
  target = advantages.target
  if row.critic == "both":
    value_bt, target = value_bt[0], target[0]
  if row.critic in ("step", "both"):
    at, live = table.boundary, table.live
  else:
    at, live = segments.flat_parent(batch.parent), batch.step_ids > 0
  target = jnp.where(live, target, 0.0)
  value = jnp.where(live, value_bt.reshape(-1)[at], 0.0)
  target, value = floats.of(target, value)
  mean = jnp.sum(target) / jnp.maximum(jnp.sum(live), 1).astype(target.dtype)
  spread = jnp.sum(jnp.square(target - mean), where=live)
  error = jnp.sum(jnp.square(target - value))
  return {"critic/unexplained_variance": (error, spread)}
