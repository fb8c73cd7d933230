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
from steppo_jax.ops import floats, groups, returns, segments, stats


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
  return_n, kl_n = floats.of(return_n, _kl(batch, table, extras))
  return_n = return_n - floats.constant(kl_reward, kl_n.dtype) * kl_n
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
    jnp.zeros(ids.shape, table.reward.dtype),
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
  episode, step = floats.of(episode, step)
  omega = floats.constant(omega, step.dtype)
  return Advantages(advantage=episode + omega * step, target=None)


def hgpo(
  batch,
  table,
  value_bt,
  extras,
  *,
  discount,
  lambda_,
  alpha,
  history,
  scale="none",
  base_group=False,
  eps=1e-6,
):
  """Returns compared among steps that share more and more of their history.

    A = Σₕ wₕ Aₕ / Σₕ wₕ,  wₕ = (h + 1)^alpha,  h = 1 .. history + 1

  Aₕ compares the discounted return among the steps of the group whose last h
  anchors are the same. A step has only the levels that its trajectory is long
  enough for. Levels at which its Aₕ is 0, because it is alone or as good as the
  mean, are left out of both sums; where all are, it gets 0.

  Args:
    batch: Tokens [B, T].
    table: Steps [S].
    value_bt: Not read.
    extras: Not read.
    discount: γ, per step.
    lambda_: Not read.
    alpha: How much more a longer common history counts; 0 counts all alike.
    history: Anchors before a step's own that are compared, at most.
    scale: What the distance from the mean is divided by: "deviation" of the
      steps that are compared, with n in it, or "none".
    base_group: Is the return of the trajectory, compared in its group, the
      level h = 0?
    eps: Added to the deviation, in units of reward.

  Returns:
    Advantages [S].

  Raises:
    ValueError: `scale` is neither of the two.

  Source: arXiv:2602.22817, as in the public code of SERL (arXiv:2605.19447).
  """
  del value_bt, extras, lambda_
  if scale not in ("deviation", "none"):
    raise ValueError(f"scale is 'deviation' or 'none', not {scale!r}")
  acted_k = inputs.acted(table)
  return_k = _step_returns(table, discount)
  levels = []
  if base_group:
    return_n, group_n, live_n = inputs.trajectories(table)
    score_n = _compared(return_n, group_n, live_n, scale, eps)
    levels.append((0, inputs.to_steps(score_n, table)))
  for h, (key_k, reached_k) in enumerate(_histories(table, history), start=1):
    among_k = acted_k & reached_k
    levels.append((h, _compared(return_k, key_k, among_k, scale, eps)))
  total, weights = jnp.zeros_like(return_k), jnp.zeros_like(return_k)
  alpha = floats.constant(alpha, return_k.dtype)
  for h, score_k in levels:
    weight = (h + 1.0) ** alpha
    total = total + weight * score_k
    weights = weights + jnp.where(score_k != 0, weight, 0.0)
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
    return jnp.zeros(num, table.reward.dtype)
  gap_k = segments.step_sum(extras.reference_gap, batch.step_ids, num_steps=num)
  return groups.group_sum(gap_k, table.trajectory, table.live, num_groups=num)


def _step_returns(table, discount):
  return returns.discounted_returns(
    table.reward,
    table.last,
    jnp.zeros_like(table.reward),
    discount=discount,
  )


def _compared(x_n, group_n, live_n, scale, eps):
  """Distances from the mean of the group, exactly 0 for all that are at it."""
  num = group_n.shape[0]
  far_n = groups.group_center(x_n, group_n, live_n, num_groups=num)
  # What a mean in floating point leaves of a distance of 0.
  noise_n = stats.EQUAL_WITHIN * jnp.maximum(jnp.abs(x_n), jnp.abs(x_n - far_n))
  far_n = jnp.where(jnp.abs(far_n) <= noise_n, 0.0, far_n)
  if scale == "none":
    return far_n
  variance_g = groups.group_mean(
    jnp.square(far_n), group_n, live_n, num_groups=num
  )
  spread_n = stats.deviation(variance_g)[group_n]
  spread_n = jnp.where(live_n, spread_n, 1.0)  # Of others it may be NaN.
  return far_n / (spread_n + floats.constant(eps, x_n.dtype))


def _histories(table, history):
  """Which steps share their last 1, 2, .. history + 1 anchors.

  Returns:
    (keys [S], equal where the anchors are; [S] bool, whether the trajectory has
    so many steps up to this one) of each length.
  """
  first_k = jnp.roll(table.last, 1).at[0].set(True)
  key_k, before_k = table.anchor, table.anchor
  reached_k = jnp.ones_like(first_k)
  levels = [(key_k, reached_k)]
  for _ in range(history):
    # The anchor one step further back, and whether there is one.
    before_k = jnp.where(first_k, -1, jnp.roll(before_k, 1))
    reached_k = ~first_k & jnp.roll(reached_k, 1)
    key_k = groups.joint_group(key_k, before_k)
    levels.append((key_k, reached_k))
  return levels
