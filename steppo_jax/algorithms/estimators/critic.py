"""Estimators that read a critic."""

import jax.numpy as jnp

from steppo_jax.algorithms.estimators import inputs
from steppo_jax.batch import Advantages
from steppo_jax.ops import floats, returns, segments, stats


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

  See `ops.returns.turn_and_token_gae`. Nothing is whitened.

  Args:
    batch: Tokens [B, T].
    table: Steps [S].
    value_bt: Two [B, T] outputs of a critic with two heads, that for steps and
      that for tokens; one array serves as both.
    extras: Not read.
    discount: γ, per step.
    lambda_: λ, per step.
    alpha: Weight of the token part.
    token_discount: γ of the token part, per token.
    token_lambda: λ of the token part, per token.

  Returns:
    Advantages [B, T], and as target one for each head, [S] and [B, T].

  Source: VETTA, whose number at arXiv was not found.
  """
  del extras
  turn_bt, token_bt = (
    value_bt if isinstance(value_bt, tuple) else (value_bt, value_bt)
  )
  found = returns.turn_and_token_gae(
    table.reward,
    inputs.step_values(table, turn_bt),
    _at_parents(batch, token_bt),
    batch.step_ids,
    table.last,
    inputs.bootstrap_values(table, turn_bt),
    inputs.bootstrap_values(table, token_bt),
    alpha=alpha,
    turn_discount=discount,
    turn_lambda=lambda_,
    token_discount=token_discount,
    token_lambda=token_lambda,
  )
  turn_target_k = jnp.where(table.live, found.turn_target, 0.0)
  return Advantages(
    advantage=found.advantage, target=(turn_target_k, found.token_target)
  )


def td_errors(batch, table, value_bt, *, critic, discount):
  """How far the critic's expectation was off at each step.

    δₖ = rₖ + γ vₖ₊₁ - vₖ

  This is GAE with λ = 0, which trusts no reward but the next one. For a critic
  on the clock of tokens it is the sum over the tokens of the step.

  Args:
    batch: Tokens [B, T], after `resolve_truncation`.
    table: Steps [S], likewise.
    value_bt: [B, T] critic output at every token, or two of them.
    critic: "step", "token" or "both", of which the head for steps is read.
    discount: γ, per unit of that clock.

  Returns:
    [S], not whitened; not to be read where `table.live` is False.
  """
  if critic == "token":
    delta_t, _ = _token_gae(batch, table, value_bt, discount, 0.0)
    return segments.step_sum(
      delta_t, batch.step_ids, num_steps=table.live.shape[0]
    )
  if isinstance(value_bt, tuple):
    value_bt = value_bt[0]
  return _step_gae(table, value_bt, discount, 0.0)[0]


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
  return returns.token_gae(
    table.reward,
    _at_parents(batch, value_bt),
    batch.step_ids,
    table.last,
    inputs.bootstrap_values(table, value_bt),
    discount=discount,
    lambda_=lambda_,
  )


def _at_parents(batch, value_bt):
  """[B, T] the value before each token, where it was read."""
  parent = jnp.asarray(batch.parent)
  column = jnp.arange(parent.shape[1], dtype=parent.dtype)[None]
  parent = jnp.where(parent < 0, column, parent)
  value = floats.wide(value_bt)
  return jnp.take_along_axis(value, parent, axis=1, mode="clip")
