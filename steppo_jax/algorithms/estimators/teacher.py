"""Estimators that re-weight GRPO's advantage by a teacher's log-probabilities.

The teacher decides how much credit a token gets and never of which sign. All of
them read `extras.teacher_gap`. An update gives them the `mix` that holds at the
time (`learner.credit.annealed`), a traced scalar.
"""

import jax.numpy as jnp

from steppo_jax.algorithms.estimators import group, inputs
from steppo_jax.batch import Advantages
from steppo_jax.ops import groups, segments, shaping


def serl(
  batch,
  table,
  value_bt,
  extras,
  *,
  discount,
  lambda_,
  eps,
  singleton,
  low,
  high,
  mix,
):
  """GRPO, each token re-weighted within a band by exp of the teacher gap.

  The public code lets `mix` fall from 0.5 to 0 over 50 updates, and so does the
  row of the table.

  Returns:
    Advantages [B, T].

  Source: arXiv:2605.19447.
  """
  advantage_t = _grpo_t(batch, table, eps, singleton)
  del value_bt, discount, lambda_
  shaped_t = shaping.reweight_band(
    advantage_t,
    _gap(extras),
    batch.step_ids > 0,
    low=low,
    high=high,
    mix=mix,
  )
  return Advantages(advantage=shaped_t, target=None)


def stepopsd(
  batch,
  table,
  value_bt,
  extras,
  *,
  discount,
  lambda_,
  eps,
  singleton,
  low,
  high,
  mix,
  span,
  equal_step_mean_abs,
  limit,
):
  """GRPO, each token re-weighted through a sigmoid of the teacher gap.

  `mix` falls from 0.5 to 0 over 50 updates in the public code (from 0.2 in the
  paper). `span` says which tokens are re-weighted: all of a "step", those of
  its "action", outside of thoughts, or those of the "answer", the action of the
  last step. With `equal_step_mean_abs` the steps of a trajectory are then
  brought to one mean |A|, by factors of at most `limit`
  (`shaping.equal_step_scale`).

  Returns:
    Advantages [B, T].

  Raises:
    ValueError: there is no such span, or it needs a mask of thoughts that the
      batch does not have.

  Source: arXiv:2605.27140, public code.
  """
  del value_bt, discount, lambda_
  shaped_t = shaping.reweight_sigmoid(
    _grpo_t(batch, table, eps, singleton),
    _gap(extras),
    _within(span, batch, table),
    low=low,
    high=high,
    mix=mix,
  )
  if equal_step_mean_abs:
    scale_k = shaping.equal_step_scale(
      shaped_t,
      batch.step_ids,
      table.trajectory,
      num_steps=table.live.shape[0],
      limit=limit,
    )
    shaped_t = shaped_t * segments.to_tokens(scale_k, batch.step_ids)
  return Advantages(advantage=shaped_t, target=None)


def _within(span, batch, table):
  """[B, T] the tokens that a teacher re-weights."""
  sampled_t = batch.step_ids > 0
  if span == "step":
    return sampled_t
  if span not in ("action", "answer"):
    raise ValueError(f"span is 'step', 'action' or 'answer', not {span!r}")
  if batch.reasoning is None:
    raise ValueError(
      f"span={span!r} tells thoughts from actions: pack the trajectories with"
      " packing.rows.pack(reasoning=True)"
    )
  action_t = sampled_t & ~batch.reasoning
  if span == "action":
    return action_t
  return action_t & segments.to_tokens(table.last, batch.step_ids)


def agentopsd(
  batch,
  table,
  value_bt,
  extras,
  *,
  discount,
  lambda_,
  eps,
  singleton,
  decay,
  mix,
  band,
):
  """GRPO, each step re-weighted by how far it moved a belief in success.

  The belief begins at the share of the group that succeeded, and each step adds
  the sum of its teacher gaps: see `shaping.belief_filter`.

  Returns:
    Advantages [S].

  Raises:
    ValueError: the table does not tell which trajectories succeeded.

  Source: arXiv:2608.05987, public code of the formula.
  """
  if table.success is None:
    raise ValueError(
      "table.success is missing: pack the trajectories with packing.rows.pack"
    )
  advantage_k = group.grpo(
    batch,
    table,
    value_bt,
    extras,
    discount=discount,
    lambda_=lambda_,
    eps=eps,
    singleton=singleton,
  ).advantage
  num_steps = table.live.shape[0]
  evidence_k = segments.step_sum(
    _gap(extras), batch.step_ids, num_steps=num_steps
  )
  # Every trajectory has one last step.
  success_g = groups.group_mean(
    table.success.astype(jnp.float32),
    table.group,
    table.live & table.last,
    num_groups=num_steps,
  )
  _, shaped_k = shaping.belief_filter(
    evidence_k,
    success_g[table.group],
    advantage_k,
    table.last,
    mix=mix,
    band=band,
    decay=decay,
  )
  shaped_k = jnp.where(inputs.acted(table), shaped_k, 0.0)
  return Advantages(advantage=shaped_k, target=None)


def _grpo_t(batch, table, eps, singleton):
  advantage_k = group.grpo(
    batch,
    table,
    None,
    None,
    discount=1.0,
    lambda_=1.0,
    eps=eps,
    singleton=singleton,
  ).advantage
  return segments.to_tokens(advantage_k, batch.step_ids)


def _gap(extras):
  if extras.teacher_gap is None:
    raise ValueError("extras.teacher_gap is missing: the run has no teacher")
  return jnp.asarray(extras.teacher_gap)
