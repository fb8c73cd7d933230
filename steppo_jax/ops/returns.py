"""Returns and advantages over time, where time counts steps or tokens.

The steps of a trajectory are adjacent on the step axis and in order. Slot 0,
the null step, is a trajectory of its own.
"""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import segments


def _reverse_affine(offset_k, slope_k):
  """Solves yₖ = offsetₖ + slopeₖ yₖ₊₁ from the last slot to the first.

  A plain scan: on CPU it takes 28 µs for 8,192 slots, an associative scan three
  times that, and it rounds the way a loop does.
  """

  def body(y, x):
    offset, slope = x
    y = offset + slope * y
    return y, y

  start = _zero(offset_k[0] + slope_k[0])
  return jax.lax.scan(body, start, (offset_k, slope_k), reverse=True)[1]


def _zero(like):
  """0.0 that varies over the same mesh axes as `like`, for a scan's carry."""
  return jnp.isfinite(like) * jnp.float32(0)


def _check_steps(reward_k, last_k, bootstrap_k, *others):
  chex.assert_rank(reward_k, 1)
  chex.assert_equal_shape([reward_k, last_k, bootstrap_k, *others])
  chex.assert_type(
    reward_k,
    float,
    custom_message=f"reward_k is {reward_k.dtype}: give rewards as floats",
  )
  for x in (bootstrap_k, *others):
    chex.assert_type(x, float)
  chex.assert_type(last_k, bool)


def discounted_returns(
  reward_k: chex.Array,
  last_k: chex.Array,
  bootstrap_k: chex.Array,
  *,
  discount: chex.Numeric,
) -> chex.Array:
  """Discounted return of every step.

    Gₖ = rₖ + γ Gₖ₊₁

  The recursion restarts after every `last_k`, where `bootstrap_k` stands in for
  Gₖ₊₁.

  Args:
    reward_k: [S] float reward of the transition that step k caused.
    last_k: [S] bool, True at the final step of each trajectory and on unused
      slots.
    bootstrap_k: [S] float value of what follows the final step, 0 if the
      episode ended; not read elsewhere.
    discount: γ in [0, 1], per step.

  Returns:
    [S] float32.

  Raises:
    AssertionError: the arrays differ in shape, or rewards are not floats.
  """
  reward_k, last_k, bootstrap_k = map(
    jnp.asarray, (reward_k, last_k, bootstrap_k)
  )
  _check_steps(reward_k, last_k, bootstrap_k)
  tail_k = jnp.where(last_k, bootstrap_k, 0).astype(jnp.float32)
  return _reverse_affine(
    reward_k.astype(jnp.float32) + discount * tail_k,
    jnp.where(last_k, 0.0, discount).astype(jnp.float32),
  )


def step_gae(
  reward_k: chex.Array,
  value_k: chex.Array,
  last_k: chex.Array,
  bootstrap_k: chex.Array,
  *,
  discount: chex.Numeric,
  lambda_: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Generalised advantage estimation over steps instead of tokens.

    δₖ = rₖ + γ vₖ₊₁ - vₖ        Aₖ = δₖ + γλ Aₖ₊₁

  The recursion restarts after every `last_k`, where `bootstrap_k` stands in for
  vₖ₊₁: 0 if the episode ended, the critic's estimate if it was cut off. A step
  whose response is empty stays in the recursion: its value comes from its
  prompt.

  Args:
    reward_k: [S] float reward of the transition that step k caused.
    value_k: [S] float V(sₖ), read at the last prompt token of step k.
    last_k: [S] bool, True at the final step of each trajectory and on unused
      slots.
    bootstrap_k: [S] float vₖ₊₁ where `last_k` holds; not read elsewhere.
    discount: γ in [0, 1], per step.
    lambda_: λ in [0, 1], per step.

  Returns:
    Advantages [S], not whitened, and value targets Aₖ + vₖ [S], float32.

  Raises:
    AssertionError: the arrays differ in shape or are not floating point.

  Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16, steps for timesteps;
    Wang et al. 2026, arXiv:2604.18401.
  """
  reward_k, value_k, last_k, bootstrap_k = map(
    jnp.asarray, (reward_k, value_k, last_k, bootstrap_k)
  )
  _check_steps(reward_k, last_k, bootstrap_k, value_k)
  value_k = value_k.astype(jnp.float32)
  next_k = jnp.where(last_k, bootstrap_k, jnp.roll(value_k, -1))
  delta_k = reward_k.astype(jnp.float32) + discount * next_k - value_k
  advantage_k = _reverse_affine(
    delta_k.astype(jnp.float32),
    jnp.where(last_k, 0.0, discount * lambda_).astype(jnp.float32),
  )
  return advantage_k, advantage_k + value_k


def token_gae(
  reward_k: chex.Array,
  value_t: chex.Array,
  step_ids: chex.Array,
  last_k: chex.Array,
  bootstrap_k: chex.Array,
  *,
  discount: chex.Numeric,
  lambda_: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Generalised advantage estimation over the action tokens of a trajectory.

    δᵢ = rᵢ + γ vᵢ₊₁ - vᵢ        Aᵢ = δᵢ + γλ Aᵢ₊₁

  Time advances over action tokens only, in the order of (step, column), from
  the last token of a step to the first of the next; prompts, observations and
  padding take no time. A step's reward falls on its last action token. A step
  without action tokens takes no time either: its reward is credited to the
  previous action token of the trajectory (before the first one there is nothing
  to credit). Rows may hold the steps in any order.

  Args:
    reward_k: [S] float reward of the transition that step k caused.
    value_t: [B, T] float value of the state in which the token was chosen, that
      is, read at its parent and stored at its own slot; not read where
      `step_ids` is 0.
    step_ids: [B, T] int32. The tokens of a step lie in one row, in order.
    last_k: [S] bool, True at the final step of each trajectory and on unused
      slots.
    bootstrap_k: [S] float value after the final step, 0 if the episode ended;
      not read where `last_k` is False.
    discount: γ in [0, 1], per token.
    lambda_: λ in [0, 1], per token.

  Returns:
    Advantages [B, T], not whitened, and value targets Aᵢ + vᵢ [B, T], float32;
    both 0 where `step_ids` is 0.

  Raises:
    AssertionError: the arrays differ in shape or are not floating point.

  Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
  """
  reward_k, value_t, step_ids, last_k, bootstrap_k = map(
    jnp.asarray, (reward_k, value_t, step_ids, last_k, bootstrap_k)
  )
  _check_steps(reward_k, last_k, bootstrap_k)
  segments.check_step_ids(step_ids, value_t)
  chex.assert_type(value_t, float)
  action = step_ids > 0
  value_t = jnp.where(action, value_t, 0).astype(jnp.float32)
  # A token's target is affine in what its step receives from its end. First
  # what all steps pass on, column by column; then, over the step axis, what
  # each receives; then the targets, column by column again.
  columns = _columns(value_t), _columns(step_ids)
  start_k, decay_k = _step_summaries(
    columns, reward_k.shape[0], discount, lambda_
  )
  after_k = jnp.where(last_k, bootstrap_k, jnp.roll(start_k, -1))
  slope_k = jnp.where(last_k, 0.0, jnp.roll(decay_k, -1))
  inflow_k = _reverse_affine(
    reward_k.astype(jnp.float32) + (discount * after_k).astype(jnp.float32),
    slope_k.astype(jnp.float32),
  )
  target_t = _targets(columns, inflow_k, discount, lambda_)
  target_t = jnp.where(action, target_t[: value_t.shape[0]], 0.0)
  return target_t - value_t, target_t


def _columns(x_t):
  """[T, B + 16]: columns of the batch, to be scanned over.

  Without the rows of padding a fused transpose reads a column whose entries lie
  a power of two apart: on CPU they share cache lines and it takes four times as
  long.
  """
  return jnp.pad(x_t, ((0, 16), (0, 0))).T


def _step_summaries(columns, num_steps, discount, lambda_):
  """What each step passes on if it receives nothing, and the factor if it does.

  With uᵢ = (1-λ) vᵢ + λ Gᵢ and the target Gᵢ = γ uᵢ₊₁: u [S] at the first
  token of the step for G = 0 at its last, and (γλ)^(number of tokens) [S]; 0
  and 1 for an empty step. Each step has its own cell in the carry, so rows may
  interleave steps.
  """

  def body(carry, column):
    u_k, decay_k = carry
    value, ids = column
    u = (1.0 - lambda_) * value + discount * lambda_ * u_k[ids]
    decay = discount * lambda_ * decay_k[ids]
    # Every token that is no action writes the same numbers to slot 0.
    u = jnp.where(ids > 0, u, 0.0).astype(jnp.float32)
    decay = jnp.where(ids > 0, decay, 1.0).astype(jnp.float32)
    return (u_k.at[ids].set(u), decay_k.at[ids].set(decay)), None

  zero = _zero(columns[0][0, 0] + columns[1][0, 0] + discount + lambda_)
  start = jnp.zeros(num_steps) + zero, jnp.ones(num_steps) + zero
  return jax.lax.scan(body, start, columns, reverse=True)[0]


def _targets(columns, inflow_k, discount, lambda_):
  """Targets Gᵢ [B + 16, T]; the last token of a step gets what it receives."""

  def body(target_k, column):
    value, ids = column
    target = target_k[ids]
    before = discount * ((1.0 - lambda_) * value + lambda_ * target)
    before = jnp.where(ids > 0, before, 0.0).astype(jnp.float32)
    return target_k.at[ids].set(before), target

  zero = _zero(columns[0][0, 0] + columns[1][0, 0] + discount + lambda_)
  start = inflow_k.at[0].set(0.0) + zero
  return jax.lax.scan(body, start, columns, reverse=True)[1].T
