"""The means that a loss is reduced by, each as (sum, weight).

Both are added over microbatches and devices before one place divides, so that
the result does not depend on how a batch was cut. A step that is averaged first
must not be cut: one of which two shards hold some tokens each counts as two
steps, with two means. `packing.rows` never cuts one.
"""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats, groups, segments, stats


def token_mean(
  loss_t: chex.Array, step_ids: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """Every action token counts the same: (Σ loss, number of tokens).

  A step counts by its length. Where all steps are equally long, this is
  `step_mean_loss`.

  Args:
    loss_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.

  Returns:
    (sum, weight), two scalars; (0, 0) without action tokens.
  """
  return stats.masked_sum(loss_t, jnp.asarray(step_ids) > 0)


def step_mean_loss(
  loss_t: chex.Array, step_ids: chex.Array, *, num_steps: int
) -> tuple[chex.Array, chex.Array]:
  """Every step counts the same: (Σₖ mean over its tokens, number of steps).

  A trajectory counts by its number of steps. Where every step has one action
  token this is `token_mean`; where every trajectory has one step it is
  `trajectory_step_mean`.

  Args:
    loss_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.
    num_steps: S, slot 0 included.

  Returns:
    (sum, weight), two scalars; steps without action tokens do not count.
  """
  mean_k = segments.step_mean(loss_t, step_ids, num_steps=num_steps)
  here_k = segments.step_count(step_ids, num_steps=num_steps) > 0
  return stats.masked_sum(mean_k, here_k)


def trajectory_step_mean(
  loss_t: chex.Array,
  step_ids: chex.Array,
  count_k: chex.Array,
  trajectory_k: chex.Array,
) -> tuple[chex.Array, chex.Array]:
  """Every trajectory counts the same, and every step within a trajectory.

    (1 / N) Σₙ (1 / Kₙ) Σₖ mean over the tokens of step k

  Where all trajectories have the same number of steps, this is
  `step_mean_loss`.

  Args:
    loss_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32; may hold only some of the steps of a trajectory.
    count_k: [S] int32 number of action tokens of each step in the whole batch,
      whichever rows are given here: `step_count` of all rows.
    trajectory_k: [S] int32 trajectory of each step, below S.

  Returns:
    (sum, weight), two scalars. Over all rows the weights add up to the
    number of trajectories with action tokens.
  """
  num_steps = trajectory_k.shape[0]
  mean_k = segments.step_mean(loss_t, step_ids, num_steps=num_steps)
  here_k = segments.step_count(step_ids, num_steps=num_steps) > 0
  steps_n = groups.group_count(trajectory_k, count_k > 0, num_groups=num_steps)
  share_k = 1.0 / jnp.maximum(steps_n[trajectory_k], 1).astype(mean_k.dtype)
  total, _ = stats.masked_sum(mean_k * share_k, here_k)
  weight, _ = stats.masked_sum(share_k, here_k)
  return total, weight


def trajectory_token_mean(
  loss_t: chex.Array,
  step_ids: chex.Array,
  count_k: chex.Array,
  trajectory_k: chex.Array,
) -> tuple[chex.Array, chex.Array]:
  """Every trajectory counts the same, and every token within a trajectory.

    (1 / N) Σₙ (1 / Lₙ) Σᵢ lossᵢ

  Where all trajectories have the same number of action tokens, this is
  `token_mean`; where the steps of a trajectory are equally long, it is
  `trajectory_step_mean`.

  Args:
    loss_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32; may hold only some of the steps of a trajectory.
    count_k: [S] int32 number of action tokens of each step in the whole batch.
    trajectory_k: [S] int32 trajectory of each step, below S.

  Returns:
    (sum, weight), two scalars. Over all rows the weights add up to the
    number of trajectories with action tokens.
  """
  num_steps = trajectory_k.shape[0]
  sum_k = segments.step_sum(loss_t, step_ids, num_steps=num_steps)
  here_k = segments.step_count(step_ids, num_steps=num_steps)
  tokens_n = jax.ops.segment_sum(
    jnp.asarray(count_k), trajectory_k, num_segments=num_steps
  )
  share_k = 1.0 / jnp.maximum(tokens_n[trajectory_k], 1).astype(sum_k.dtype)
  total = (sum_k * share_k).sum()
  return total, (here_k.astype(sum_k.dtype) * share_k).sum()


def token_sum_over_constant(
  loss_t: chex.Array,
  step_ids: chex.Array,
  count_k: chex.Array,
  trajectory_k: chex.Array,
  *,
  constant: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Sum over the tokens of a trajectory, divided by a constant, not its length.

    (1 / N) Σₙ (1 / constant) Σᵢ lossᵢ

  A long trajectory counts for more than a short one. Where every trajectory has
  exactly `constant` action tokens, this is `token_mean`.

  Args:
    loss_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32; may hold only some of the steps of a trajectory.
    count_k: [S] int32 number of action tokens of each step in the whole batch.
    trajectory_k: [S] int32 trajectory of each step, below S.
    constant: Tokens, such as the longest response allowed.

  Returns:
    (sum, weight), two scalars. Over all rows the weights add up to the
    constant times the number of trajectories with action tokens.

  Source: Liu et al. 2025, Dr. GRPO, arXiv:2503.20783.
  """
  total, _ = token_mean(loss_t, step_ids)
  _, trajectories = trajectory_token_mean(
    loss_t, step_ids, count_k, trajectory_k
  )
  return total, floats.constant(constant, total.dtype) * trajectories
