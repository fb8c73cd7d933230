"""What an update begins with, number by number, for people who want to look.

An update averages: it reports how many ratios were clipped, not which. Here the
same functions run on the same arrays, and nothing is averaged, so that a viewer
can show what each step was worth and which tokens the clip held back.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax.algorithms import objective
from steppo_jax.algorithms.estimators import critic, inputs
from steppo_jax.learner import credit as credit_lib
from steppo_jax.learner import update as update_lib
from steppo_jax.learner.spec import UpdateSpec
from steppo_jax.ops import losses, ratios, segments


class Explained(NamedTuple):
  """Numbers of the steps [S] and of the tokens [M, R, T] of a batch.

  Everything is float32, and NaN where the row of the table has no such number
  or the step or token took no part. What depends on the policy is of the policy
  before the update: it is what the first optimizer step of each mini-batch
  would see if it came first.

  Attributes:
    reward_k: Reward that the estimator read, in reward units.
    value_k: V at the last token of the prompt.
    delta_k: TD error; see `algorithms.estimators.critic.td_errors`.
    advantage_k: Advantage as the loss uses it, whitened where the row does so;
      the mean over the tokens of the step where it is one number a token.
    target_k: What the critic is to learn: a mean as above, or of the first
      segment where steps are cut into segments.
    ratio_k: Ratio of the step. Of a row with a ratio of tokens it is their
      geometric mean, and of one with segments that of the segments.
    logp_t: Log-probability of each sampled token.
    ratio_t: Ratio of the token alone, whatever the row makes of it.
    entropy_t: Entropy in nats where the token was sampled.
    advantage_t: The advantage that the token was given.
    clipped_t: 1 where the surrogate was clipped, else 0; for "log_clip" the
      share of the step's tokens.
    teacher_gap_t: How much more likely a teacher finds the token, in nats.
  """

  reward_k: chex.Array
  value_k: chex.Array
  delta_k: chex.Array
  advantage_k: chex.Array
  target_k: chex.Array
  ratio_k: chex.Array
  logp_t: chex.Array
  ratio_t: chex.Array
  entropy_t: chex.Array
  advantage_t: chex.Array
  clipped_t: chex.Array
  teacher_gap_t: chex.Array


def explain(
  spec: UpdateSpec, state, reference, batch, teacher=None
) -> Explained:
  """Evaluates the networks as they are; arguments as in `update.update`.

  Raises:
    ValueError: see `update.update`.
  """
  state, reference, batch, teacher = update_lib.as_jax(
    (state, reference, batch, teacher)
  )
  spec, credit = update_lib.assigned(spec, state, reference, batch, teacher)
  shape = batch.tokens.tokens.shape
  # Steps as they were played: segments, and actions that are left out, differ.
  used = credit.batch.tokens.step_ids > 0
  ids = jnp.where(used, batch.tokens.step_ids, 0).reshape(-1, shape[2])
  logp, entropy = spec.over_all_rows(
    batch, lambda rows: spec.logp(state.policy, rows)
  )
  ratio_k, ratio_t, clipped_t = _surrogates(spec, credit, logp, ids)
  advantage_k, advantage_t = _to_both(credit.advantages.advantage, credit, ids)
  live = credit.steps.live
  of_critic = _critic(spec, credit, ids)
  reward_k = jnp.where(live, credit.steps.reward, batch.table.reward)
  sampled = batch.tokens.step_ids > 0
  gap = credit.teacher_gap
  gap = jnp.nan if gap is None else gap.reshape(shape)
  per_step = lambda x, where=live: _known(x, where)
  per_token = lambda x, where: _known(x, where.reshape(shape))
  acting = credit.acting.tokens.step_ids > 0
  return Explained(
    reward_k=per_step(reward_k, batch.table.live),
    value_k=per_step(of_critic["value"]),
    delta_k=per_step(of_critic["delta"]),
    advantage_k=per_step(advantage_k),
    target_k=per_step(of_critic["target"]),
    ratio_k=per_step(ratio_k),
    logp_t=per_token(logp, sampled),
    ratio_t=per_token(ratio_t, acting),
    entropy_t=per_token(entropy, sampled),
    advantage_t=per_token(advantage_t.reshape(shape), used),
    clipped_t=per_token(clipped_t, acting),
    teacher_gap_t=per_token(gap, used),
  )


def _known(x, where):
  """Numbers where they mean something, NaN elsewhere."""
  return jnp.where(where, x, jnp.nan).astype(jnp.float32)


def _to_both(x, credit: credit_lib.Credit, ids):
  """An array of the credit on the clocks of steps and of tokens."""
  num_steps = credit.steps.live.shape[0]
  own = credit.batch.tokens.step_ids.reshape(ids.shape)
  x_t = x if x.ndim == 2 else segments.to_tokens(x, own)
  if x.ndim == 1 and x.shape[0] == num_steps:
    return x, x_t
  return segments.step_mean(x_t, ids, num_steps=num_steps), x_t


def _critic(spec: UpdateSpec, credit: credit_lib.Credit, ids):
  """Value, TD error and target of each step; NaN without a critic."""
  row = spec.algorithm
  if row.critic is None:
    return dict.fromkeys(("value", "delta", "target"), jnp.nan)
  value_bt = jax.tree.map(lambda x: x.reshape(ids.shape), credit.old_value)
  flat = credit_lib.flat_rows(credit.batch.tokens).replace(step_ids=ids)
  delta_k = critic.td_errors(
    flat, credit.steps, value_bt, critic=row.critic, discount=row.discount
  )
  target = credit.advantages.target
  if row.critic == "both":
    value_bt, target = value_bt[0], target[0]
  value_k = inputs.step_values(credit.steps, value_bt)
  if row.segment_share is None:
    target_k, _ = _to_both(target, credit, ids)
  else:
    own = credit.batch.tokens.step_ids.reshape(ids.shape)
    slots = target.shape[0]
    first_k = jnp.full_like(credit.steps.boundary, slots).at[ids].min(own)
    target_k = target.at[first_k].get(mode="fill", fill_value=jnp.nan)
  return {"value": value_k, "delta": delta_k, "target": target_k}


def _surrogates(spec: UpdateSpec, credit: credit_lib.Credit, logp, ids):
  """Ratio of each step and token, and where the surrogate was clipped."""
  row, tokens = spec.algorithm, credit.acting.tokens
  num_slots = credit.acting.table.live.shape[0]
  num_steps = credit.steps.live.shape[0]
  advantage = update_lib.to_rows(credit.advantages.advantage, logp.shape)

  def part(rows, logp_t, advantage):
    """One mini-batch: what its mean log-ratio centres is its own."""
    mask = rows.step_ids > 0
    logp_t = jnp.where(mask, logp_t, 0.0)
    z_t = ratios.log_ratio(logp_t, rows.behaviour_logp, mask)
    total, count = ratios.log_ratio_mean(z_t, rows.step_ids)
    _, clipped, z, _ = objective.surrogate(
      row, advantage, logp_t, rows,
      num_steps=num_slots, mu=total / jnp.maximum(count, 1),
    )  # fmt: skip
    return (
      _on_tokens(losses.bounded_exp(z), rows.step_ids),
      losses.bounded_exp(z_t),
      _on_tokens(clipped.astype(jnp.float32), rows.step_ids),
      z_t,
    )

  axis = 0 if advantage.ndim == 3 else None
  ratio_used, ratio_t, clipped_t, z_t = jax.vmap(part, (0, 0, axis))(
    tokens, logp, advantage
  )
  acting = jnp.where(tokens.step_ids.reshape(ids.shape) > 0, ids, 0)
  mean = lambda x: segments.step_mean(
    x.reshape(ids.shape), acting, num_steps=num_steps
  )
  # All tokens of a step have its ratio, so that their mean is that ratio.
  ratio_k = mean(ratio_used)
  if row.ratio == "token":
    ratio_k = losses.bounded_exp(mean(z_t))
  acted = segments.step_count(acting, num_steps=num_steps) > 0
  return jnp.where(acted, ratio_k, jnp.nan), ratio_t, clipped_t


def _on_tokens(x, step_ids):
  return x if x.ndim == 2 else segments.to_tokens(x, step_ids)
