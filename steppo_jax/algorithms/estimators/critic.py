"""Estimators that read a critic."""

import jax.numpy as jnp

from steppo_jax.algorithms.estimators import inputs
from steppo_jax.batch import Advantages
from steppo_jax.ops import floats, returns, segments, shaping, stats


def step_gae(batch, table, value_bt, extras, *, discount, lambda_):
  """GAE over steps, whitened over the steps that hold an action.

  A step with an empty response stays in the recursion and trains the critic; it
  is left out of the moments and its advantage is 0.

  Args:
    batch: Tokens [B, T].
    table: Steps [S].
    value_bt: [B, T] critic output at every token.
    extras: Not read.
    discount: γ, per step.
    lambda_: λ, per step.

  Returns:
    Advantages [S], and targets [S] from the raw advantages.

  Source: arXiv:2604.18401, section 3.
  """
  del extras
  raw_k, target_k = _step_gae(table, value_bt, discount, lambda_)
  advantage_k = stats.whiten(raw_k, inputs.acted(table))
  return Advantages(
    advantage=advantage_k, target=jnp.where(table.live, target_k, 0.0)
  )


def token_gae(batch, table, value_bt, extras, *, discount, lambda_):
  """GAE over the action tokens of a trajectory, whitened over action tokens.

  Args:
    batch: Tokens [B, T].
    table: Steps [S].
    value_bt: [B, T] critic output at every token; that of an action token is
      read at its parent.
    extras: Not read.
    discount: γ, per token.
    lambda_: λ, per token.

  Returns:
    Advantages [B, T], and targets [B, T] from the raw advantages.

  Source: Schulman et al. 2016, arXiv:1506.02438.
  """
  del extras
  raw_t, target_t = _token_gae(batch, table, value_bt, discount, lambda_)
  advantage_t = stats.whiten(raw_t, batch.step_ids > 0)
  return Advantages(advantage=advantage_t, target=target_t)


def vetta(
  batch,
  table,
  value_bt,
  extras,
  *,
  discount,
  lambda_,
  alpha,
  token_discount,
  token_lambda,
):
  """Step GAE plus what the token GAE says about tokens within the step.

    A = A_step + alpha (A_token - mean of A_token over the step)

  Args:
    batch: Tokens [B, T].
    table: Steps [S].
    value_bt: [B, T] critic output at every token.
    extras: Not read.
    discount: γ, per step.
    lambda_: λ, per step.
    alpha: Weight of the token part.
    token_discount: γ of the token part, per token.
    token_lambda: λ of the token part, per token.

  Returns:
    Advantages [B, T], whitened over action tokens, and targets [B, T] of the
    token part.
  """
  del extras
  step_k, _ = _step_gae(table, value_bt, discount, lambda_)
  token_t, target_t = _token_gae(
    batch, table, value_bt, token_discount, token_lambda
  )
  ids, num_steps = batch.step_ids, table.live.shape[0]
  within_t = shaping.centered_in_step(token_t, ids, num_steps=num_steps)
  fused_t = segments.to_tokens(step_k, ids) + alpha * within_t
  return Advantages(advantage=stats.whiten(fused_t, ids > 0), target=target_t)


def _step_gae(table, value_bt, discount, lambda_):
  return returns.step_gae(
    table.reward,
    inputs.step_values(table, value_bt),
    table.last,
    inputs.bootstrap_values(table, value_bt),
    discount=discount,
    lambda_=lambda_,
  )


def _token_gae(batch, table, value_bt, discount, lambda_):
  parent = batch.parent
  column = jnp.arange(parent.shape[1], dtype=parent.dtype)[None]
  parent = jnp.where(parent < 0, column, parent)
  value = floats.wide(value_bt)
  return returns.token_gae(
    table.reward,
    jnp.take_along_axis(value, parent, axis=1, mode="clip"),
    batch.step_ids,
    table.last,
    inputs.bootstrap_values(table, value_bt),
    discount=discount,
    lambda_=lambda_,
  )
