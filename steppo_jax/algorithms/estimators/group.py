"""Estimators that compare episodes of one task, or steps of one state.

None reads a critic and none returns targets. Where it appears, `singleton` says
what a group of one gets: "zero", or "raw" for its own return, as public code
does. `kl_reward` is the weight of Σ log π/π_ref over its action tokens that a
trajectory pays from its return; it needs `extras.reference_gap`.
"""

import jax
import jax.numpy as jnp

from steppo_jax.algorithms.estimators import inputs
from steppo_jax.batch import Advantages
from steppo_jax.ops import groups, returns, segments, stats


def grpo(batch, table, value_bt, extras, *, discount, lambda_, eps, singleton):
  """Return of the trajectory, z-scored in its group, for all its steps.

  The return is the plain sum of rewards: `discount` and `lambda_` are not read.

  Returns:
    Advantages [S].

  Source: Shao et al. 2024, arXiv:2402.03300.
  """
  del value_bt, extras, discount, lambda_
  return_n, group_n, live_n = inputs.trajectories(table)
  score_n = groups.group_zscore(
    return_n,
    group_n,
    live_n,
    num_groups=group_n.shape[0],
    eps=eps,
    singleton=singleton,
  )
  return _for_steps(score_n, batch, table)


def dr_grpo(batch, table, value_bt, extras, *, discount, lambda_, singleton):
  """Return of the trajectory minus the mean of its group, for all its steps.

  Returns:
    Advantages [S].

  Source: Liu et al. 2025, Dr. GRPO, arXiv:2503.20783.
  """
  del value_bt, extras, discount, lambda_
  return_n, group_n, live_n = inputs.trajectories(table)
  score_n = _centered(return_n, group_n, live_n, singleton)
  return _for_steps(score_n, batch, table)


def rloo(
  batch, table, value_bt, extras, *, discount, lambda_, singleton, kl_reward
):
  """Return of the trajectory minus the mean of the others, for all its steps.

  Returns:
    Advantages [S].

  Source: Ahmadian et al. 2024, arXiv:2402.14740.
  """
  del value_bt, discount, lambda_
  return_n, group_n, live_n = inputs.trajectories(table)
  return_n = return_n - kl_reward * _kl(batch, table, extras)
  score_n = groups.group_leave_one_out(
    return_n, group_n, live_n, num_groups=group_n.shape[0]
  )
  score_n = _keep_singletons(score_n, return_n, group_n, live_n, singleton)
  return _for_steps(score_n, batch, table)


def reinforce_pp(batch, table, value_bt, extras, *, discount, lambda_):
  """Return-to-go over the tokens of the trajectory, whitened over tokens.

  Token GAE without a critic and with λ = 1: `lambda_` is not read.

  Returns:
    Advantages [B, T].

  Source: Hu et al. 2025, REINFORCE++, arXiv:2501.03262.
  """
  del value_bt, extras, lambda_
  ids = batch.step_ids
  return_t, _ = returns.token_gae(
    table.reward,
    jnp.zeros(ids.shape, jnp.float32),
    ids,
    table.last,
    jnp.zeros_like(table.reward),
    discount=discount,
    lambda_=1.0,
  )
  return Advantages(advantage=stats.whiten(return_t, ids > 0), target=None)


def reinforce_pp_baseline(
  batch, table, value_bt, extras, *, discount, lambda_, singleton
):
  """Return minus the mean of the group, whitened over tokens.

  Returns:
    Advantages [B, T].

  Source: Hu et al. 2025, REINFORCE++, arXiv:2501.03262.
  """
  del value_bt, extras, discount, lambda_
  return_n, group_n, live_n = inputs.trajectories(table)
  score_n = _centered(return_n, group_n, live_n, singleton)
  score_k = inputs.to_steps(score_n, table)
  score_t = segments.to_tokens(score_k, batch.step_ids)
  return Advantages(
    advantage=stats.whiten(score_t, batch.step_ids > 0), target=None
  )


def gigpo(
  batch, table, value_bt, extras, *, discount, lambda_, omega, eps, singleton
):
  """GRPO plus the z-score of the return among steps in the same state.

    A = A_episode + omega A_step

  A_step compares the discounted return of the steps of a group that share their
  anchor; a step alone in its state gets 0.

  Returns:
    Advantages [S].

  Source: Feng et al. 2025, arXiv:2505.10978.
  """
  del lambda_
  episode = grpo(
    batch,
    table,
    value_bt,
    extras,
    discount=discount,
    lambda_=1.0,
    eps=eps,
    singleton=singleton,
  ).advantage
  return_k = _step_returns(table, discount)
  acted_k = inputs.acted(table)
  step = groups.group_zscore(
    return_k,
    table.anchor,
    acted_k,
    num_groups=acted_k.shape[0],
    eps=eps,
    singleton="zero",
  )
  return Advantages(advantage=episode + omega * step, target=None)


def hgpo(batch, table, value_bt, extras, *, discount, lambda_, alpha, history):
  """Returns compared among steps that share more and more of their history.

    A = Σₕ wₕ Aₕ / Σₕ wₕ,  wₕ = (h + 1)^alpha,  h = 0 .. history

  Aₕ is the distance of the discounted return from the mean of the steps of the
  group whose last h + 1 anchors are the same. Levels at which a step is alone
  are left out; alone at all of them it gets 0. How the levels are weighted
  where some are missing is our reconstruction.

  Returns:
    Advantages [S].
  """
  del value_bt, extras, lambda_
  acted_k = inputs.acted(table)
  num, return_k = acted_k.shape[0], _step_returns(table, discount)
  total = jnp.zeros(num)
  weights = jnp.zeros(num)
  for level, key_k in enumerate(_histories(table, history)):
    weight = (level + 1.0) ** alpha
    centered = groups.group_center(return_k, key_k, acted_k, num_groups=num)
    size_k = groups.group_count(key_k, acted_k, num_groups=num)[key_k]
    peers = acted_k & (size_k > 1)
    # A step that is alone has 0, unless its return is not finite.
    told = peers | ~jnp.isfinite(centered)
    total = total + jnp.where(told, weight * centered, 0.0)
    weights = weights + jnp.where(peers, weight, 0.0)
  advantage_k = total / jnp.where(weights > 0, weights, 1.0)
  return Advantages(advantage=advantage_k, target=None)


def gagpo(batch, table, value_bt, extras, *, discount, lambda_, eps, singleton):
  """Step GAE on a table of values that the group itself provides.

  The value of a state is the mean discounted return of the steps of the group
  that share its anchor. λ = 1 gives return minus value. Advantages are z-scored
  over the steps of the group. The published γ and λ are not known.

  Returns:
    Advantages [S].

  Source: arXiv:2605.13217, read in a secondary source.
  """
  del value_bt, extras
  return_k = _step_returns(table, discount)
  state_k, num = table.anchor, table.anchor.shape[0]
  value_g = groups.group_mean(return_k, state_k, table.live, num_groups=num)
  raw_k, _ = returns.step_gae(
    table.reward,
    jnp.where(table.live, value_g[state_k], 0.0),
    table.last,
    jnp.zeros_like(table.reward),
    discount=discount,
    lambda_=lambda_,
  )
  score_k = groups.group_zscore(
    raw_k,
    table.group,
    inputs.acted(table),
    num_groups=num,
    eps=eps,
    singleton=singleton,
  )
  return Advantages(advantage=score_k, target=None)


def sapo_rec(batch, table, value_bt, extras, *, discount, lambda_, eps, divide):
  """Reward of a step against those of the same step of the group's episodes.

  With a reward of 1 for a right step and 0 for a wrong one this is the
  group-relative correctness of each step by itself: no later reward reaches a
  step, so that `discount` and `lambda_` are not read. See
  `ops.groups.group_by_index`; `divide` is whether the deviation divides.

  Returns:
    Advantages [S].

  Source: arXiv:2605.17648, read in a secondary source.
  """
  del value_bt, extras, discount, lambda_
  num = table.live.shape[0]
  slot_k = jnp.arange(num, dtype=jnp.int32)
  first_k = jnp.roll(table.last, 1).at[0].set(True)
  index_k = slot_k - jax.lax.cummax(jnp.where(first_k, slot_k, 0))
  # Pairs of group and place are numbered: their product may be past int32.
  score_k = groups.group_by_index(
    table.reward,
    groups.joint_group(table.group, index_k),
    jnp.zeros_like(index_k),
    inputs.acted(table),
    num_groups=num,
    num_indices=1,
    eps=eps,
    divide=divide,
  )
  return Advantages(advantage=score_k, target=None)


def _for_steps(score_n, batch, table):
  score_k = inputs.to_steps(score_n, table)
  return Advantages(advantage=score_k, target=None)


def _centered(return_n, group_n, live_n, singleton):
  score_n = groups.group_center(
    return_n, group_n, live_n, num_groups=group_n.shape[0]
  )
  return _keep_singletons(score_n, return_n, group_n, live_n, singleton)


def _keep_singletons(score_n, return_n, group_n, live_n, singleton):
  if singleton not in ("zero", "raw"):
    raise ValueError(f"singleton is 'zero' or 'raw', not {singleton!r}")
  if singleton == "zero":
    return score_n
  size_g = groups.group_count(group_n, live_n, num_groups=group_n.shape[0])
  return jnp.where(live_n & (size_g[group_n] == 1), return_n, score_n)


def _kl(batch, table, extras):
  """Σ log π/π_ref over the action tokens of each trajectory, [S]."""
  num = table.live.shape[0]
  if extras.reference_gap is None:
    return jnp.zeros(num)
  gap_k = segments.step_sum(extras.reference_gap, batch.step_ids, num_steps=num)
  return groups.group_sum(gap_k, table.trajectory, table.live, num_groups=num)


def _step_returns(table, discount):
  return returns.discounted_returns(
    table.reward,
    table.last,
    jnp.zeros_like(table.reward),
    discount=discount,
  )


def _histories(table, history):
  """Keys [S] of the states that share their last 1, 2, .. history + 1 anchors.

  A step without that many before it is compared with others that begin alike.
  """
  first_k = jnp.roll(table.last, 1).at[0].set(True)
  key_k, before_k = table.anchor, table.anchor
  keys = [key_k]
  for _ in range(history):
    # The anchor one step further back, -1 before the start of the episode.
    before_k = jnp.where(first_k, -1, jnp.roll(before_k, 1))
    key_k = groups.joint_group(key_k, before_k)
    keys.append(key_k)
  return keys
