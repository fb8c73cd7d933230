"""Estimators that re-weight GRPO's advantage by a teacher's log-probabilities.

The teacher decides how much credit a token gets and never of which sign. All of
them read `extras.teacher_gap`. An update gives them the `mix` that holds at the
time (`learner.credit.annealed`), a traced scalar.
"""

import jax.numpy as jnp

from steppo_jax.algorithms.estimators import group
from steppo_jax.batch import Advantages
from steppo_jax.ops import segments, shaping


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
):
  """GRPO, each token re-weighted through a sigmoid of the teacher gap.

  `mix` falls from 0.2 to 0 over 50 updates in the paper. The normalisation over
  steps that follows there was not found and is left out.

  Returns:
    Advantages [B, T].

  Source: arXiv:2605.27140, read in a secondary source.
  """
  del value_bt, discount, lambda_
  shaped_t = shaping.reweight_sigmoid(
    _grpo_t(batch, table, eps, singleton),
    _gap(extras),
    batch.step_ids > 0,
    low=low,
    high=high,
    mix=mix,
  )
  return Advantages(advantage=shaped_t, target=None)


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
):
  """GRPO, each step re-weighted by a belief gathered from the teacher gaps.

  A reconstruction: see `shaping.belief`.

  Returns:
    Advantages [S].
  """
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
  evidence_k = segments.step_mean(
    _gap(extras), batch.step_ids, num_steps=table.live.shape[0]
  )
  shaped_k = shaping.belief(
    advantage_k, evidence_k, table.last, decay=decay, mix=mix
  )
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
