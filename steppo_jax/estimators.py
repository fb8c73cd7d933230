"""Credit assignment: from rewards and values to advantages and value targets.

Every estimator has one signature,

    estimator(batch, table, value_bt, extras, *, discount, lambda_, ...)

with the critic's output `value_bt [B, T]` at every token, or None without a
critic, and `extras`, arrays that few methods need (`Extras`). Constants of a
method follow by keyword. Advantages are on the clock of the method, whitened
where the method whitens, and 0 wherever there is no action to credit.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from steppo_jax.batch import Advantages, StepTable, TokenBatch
from steppo_jax.ops import groups, returns, segments, stats

BOOTSTRAPS = ("value", "zero", "drop_last")


class Extras(NamedTuple):
  """Arrays that only some methods read.

  Attributes:
    teacher_gap: [B, T] float, log-probability of each action token under a
      teacher minus that under the policy before the update.
    entropy: [B, T] float, entropy in nats of the distribution that each action
      token was sampled from.
  """

  teacher_gap: chex.Array | None = None
  entropy: chex.Array | None = None


def resolve_truncation(
  batch: TokenBatch, table: StepTable, *, bootstrap: str
) -> tuple[TokenBatch, StepTable]:
  """Decides what follows a step at which the episode was cut by a limit.

  Call it once, on the whole batch, before estimators and objective see it.
  Afterwards everything bootstraps exactly where `table.truncated` holds.

  Args:
    batch: Tokens of all rows.
    table: Steps.
    bootstrap: "value" leaves the batch as it is: the critic's value of the next
      prompt follows. "zero" treats a truncated episode as terminated, which is
      biased by -(γλ)^(T-k) γ V(s_T+1) and is what public code does.
      "drop_last" takes the last step of a truncated episode out of the batch;
      its prompt becomes the state that the step before it bootstraps from. Its
      reward goes with it.

  Returns:
    Batch and table in the same shapes.

  Raises:
    ValueError: `bootstrap` is none of the three.
  """
  if bootstrap not in BOOTSTRAPS:
    raise ValueError(f"bootstrap is one of {BOOTSTRAPS}, not {bootstrap!r}")
  if bootstrap == "value":
    return batch, table
  if bootstrap == "zero":
    cut = jnp.zeros_like(table.truncated)
    return batch, table.replace(truncated=cut)
  dropped = table.live & table.truncated
  # A dropped step that is not the first of its episode has a step before it.
  now_last = jnp.roll(dropped, -1) & ~table.last
  kept = segments.to_tokens(~dropped, batch.step_ids)
  batch = batch.replace(step_ids=jnp.where(kept, batch.step_ids, 0))
  table = table.replace(
    live=table.live & ~dropped,
    reward=jnp.where(dropped, 0.0, table.reward),
    last=table.last | now_last,
    truncated=now_last,
    bootstrap_at=jnp.where(
      now_last, jnp.roll(table.boundary, -1), table.bootstrap_at
    ),
  )
  return batch, table


def step_gae(
  batch: TokenBatch,
  table: StepTable,
  value_bt: chex.Array,
  extras: Extras,
  *,
  discount: chex.Numeric,
  lambda_: chex.Numeric,
) -> Advantages:
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
    Advantages [S] and targets [S] from the raw advantages.

  Source: arXiv:2604.18401, section 3.
  """
  del extras
  value_k, bootstrap_k = _step_values(table, value_bt)
  raw_k, target_k = returns.step_gae(
    table.reward,
    value_k,
    table.last,
    bootstrap_k,
    discount=discount,
    lambda_=lambda_,
  )
  advantage_k = stats.whiten(raw_k, _acted(batch, table))
  return Advantages(
    advantage=advantage_k, target=jnp.where(table.live, target_k, 0.0)
  )


def token_gae(
  batch: TokenBatch,
  table: StepTable,
  value_bt: chex.Array,
  extras: Extras,
  *,
  discount: chex.Numeric,
  lambda_: chex.Numeric,
) -> Advantages:
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
    Advantages [B, T] and targets [B, T] from the raw advantages.

  Source: Schulman et al. 2016, arXiv:1506.02438.
  """
  del extras
  raw_t, target_t = _token_gae(batch, table, value_bt, discount, lambda_)
  advantage_t = stats.whiten(raw_t, batch.step_ids > 0)
  return Advantages(advantage=advantage_t, target=target_t)


def grpo(
  batch: TokenBatch,
  table: StepTable,
  value_bt: chex.Array | None,
  extras: Extras,
  *,
  discount: chex.Numeric,
  lambda_: chex.Numeric,
  eps: chex.Numeric,
  singleton: str,
) -> Advantages:
  """Return of the trajectory, z-scored in its group, for all its steps.

  Args:
    batch: Tokens [B, T].
    table: Steps [S].
    value_bt: Not read.
    extras: Not read.
    discount: Not read: the return is the plain sum of rewards.
    lambda_: Not read.
    eps: Added to the deviation.
    singleton: "zero" or "raw", what a group of one gets.

  Returns:
    Advantages [S]; no target.

  Source: Shao et al. 2024, arXiv:2402.03300.
  """
  del value_bt, extras, discount, lambda_
  return_n, group_n, live_n = _trajectories(table)
  advantage_n = groups.group_zscore(
    return_n,
    group_n,
    live_n,
    num_groups=group_n.shape[0],
    eps=eps,
    singleton=singleton,
  )
  return Advantages(advantage=_to_steps(advantage_n, batch, table), target=None)


def _acted(batch, table):
  """[S] bool, live steps with at least one action token."""
  num_steps = table.live.shape[0]
  count_k = segments.step_count(batch.step_ids, num_steps=num_steps)
  return table.live & (count_k > 0)


def _step_values(table, value_bt):
  """V at every live step and, where an episode was cut, V of what follows."""
  value = value_bt.astype(jnp.float32).reshape(-1)
  value_k = jnp.where(table.live, value[table.boundary], 0.0)
  return value_k, _bootstrap(table, value)


def _bootstrap(table, value):
  cut = table.live & table.last & table.truncated
  return jnp.where(cut, value[table.bootstrap_at], 0.0)


def _token_gae(batch, table, value_bt, discount, lambda_):
  value = value_bt.astype(jnp.float32).reshape(-1)
  return returns.token_gae(
    table.reward,
    value[segments.flat_parent(batch.parent)],
    batch.step_ids,
    table.last,
    _bootstrap(table, value),
    discount=discount,
    lambda_=lambda_,
  )


def _trajectories(table):
  """Return, group and liveness of every trajectory slot, each [S]."""
  num = table.live.shape[0]
  return_n = groups.group_sum(
    table.reward, table.trajectory, table.live, num_groups=num
  )
  live_n = groups.group_count(table.trajectory, table.live, num_groups=num) > 0
  # All steps of a trajectory hold the same group: any of them will do.
  group_n = (
    jnp.zeros(num, jnp.int32)
    .at[table.trajectory]
    .max(jnp.where(table.live, table.group, 0).astype(jnp.int32))
  )
  return return_n, group_n, live_n


def _to_steps(advantage_n, batch, table):
  """Gives the number of a trajectory to those of its steps that acted."""
  acted_k = _acted(batch, table)
  return jnp.where(acted_k, advantage_n[table.trajectory], 0.0)
