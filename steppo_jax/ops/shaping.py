"""Re-weighting of advantages. No function here changes the sign of any.

Teachers and weights decide how much credit an action gets, rewards decide of
which sign.
"""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats, losses, segments


def reweight_band(
  advantage_t: chex.Array,
  gap_t: chex.Array,
  action_mask: chex.Array,
  *,
  low: chex.Numeric,
  high: chex.Numeric,
  mix: chex.Numeric,
) -> chex.Array:
  """Re-weights by how far a teacher agrees, within a band.

    w = clip(exp(sign(A) gap), low, high)        A ((1 - mix) + mix w)

  Args:
    advantage_t: [B, T] float.
    gap_t: [B, T] float, log-probability under the teacher minus that under the
      policy; not read outside the mask.
    action_mask: [B, T] bool.
    low: Smallest weight, >= 0.
    high: Largest weight.
    mix: Share of the re-weighted advantage, in [0, 1].

  Returns:
    [B, T] float32; the advantage as it was outside the mask.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.

  Source: SERL, arXiv:2605.19447, public code.
  """
  signed_t = _signed_gap(advantage_t, gap_t, action_mask)
  # Bounded before exp: past the band the weight is constant anyway.
  low, high = (floats.constant(x, signed_t.dtype) for x in (low, high))
  weight_t = jnp.clip(losses.bounded_exp(signed_t), low, high)
  return _mixed(advantage_t, weight_t, action_mask, mix)


def reweight_sigmoid(
  advantage_t: chex.Array,
  gap_t: chex.Array,
  action_mask: chex.Array,
  *,
  low: chex.Numeric,
  high: chex.Numeric,
  mix: chex.Numeric,
) -> chex.Array:
  """Re-weights by how far a teacher agrees, through a sigmoid.

    w = clip(2 sigmoid(sign(A) gap), low, high)        A ((1 - mix) + mix w)

  Args:
    advantage_t: [B, T] float.
    gap_t: [B, T] float, log-probability under the teacher minus that under the
      policy; not read outside the mask.
    action_mask: [B, T] bool.
    low: Smallest weight, >= 0.
    high: Largest weight.
    mix: Share of the re-weighted advantage, in [0, 1].

  Returns:
    [B, T] float32; the advantage as it was outside the mask.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.

  Source: StepOPSD, arXiv:2605.27140, read in a secondary source; its further
    normalisation over steps was not found and is left out.
  """
  signed_t = _signed_gap(advantage_t, gap_t, action_mask)
  low, high = (floats.constant(x, signed_t.dtype) for x in (low, high))
  weight_t = jnp.clip(2.0 * jax.nn.sigmoid(signed_t), low, high)
  return _mixed(advantage_t, weight_t, action_mask, mix)


def token_weight(
  advantage_t: chex.Array,
  weight_t: chex.Array,
  step_ids: chex.Array,
  *,
  num_steps: int,
  mix: chex.Numeric,
) -> chex.Array:
  """Re-weights the tokens of a step against each other.

    A ((1 - mix) + mix w / mean of w over the step)

  Where the advantage is constant in the step, so is its sum. This is the slot
  for weights by token energy, entropy or teacher divergence; published formulas
  were not found, so any instance is a reconstruction.

  Args:
    advantage_t: [B, T] float.
    weight_t: [B, T] float; negative weights count as 0; not read where
      `step_ids` is 0.
    step_ids: [B, T] int32.
    num_steps: S, slot 0 included.
    mix: Share of the re-weighted advantage, in [0, 1].

  Returns:
    [B, T] float32; the advantage as it was outside the actions and in steps
    whose weights are all 0.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.
  """
  advantage_t, weight_t = jnp.asarray(advantage_t), jnp.asarray(weight_t)
  chex.assert_type([advantage_t, weight_t], float)
  segments.check_step_ids(jnp.asarray(step_ids), advantage_t, weight_t)
  mask = jnp.asarray(step_ids) > 0
  weight_t = floats.wide(jnp.maximum(jnp.where(mask, weight_t, 0), 0))
  mean_k = segments.step_mean(weight_t, step_ids, num_steps=num_steps)
  mean_t = segments.to_tokens(mean_k, step_ids)
  none_t = mean_t == 0
  share_t = jnp.where(none_t, 1.0, weight_t / jnp.where(none_t, 1.0, mean_t))
  return _mixed(advantage_t, share_t, mask, mix)


def belief(
  advantage_k: chex.Array,
  evidence_k: chex.Array,
  last_k: chex.Array,
  *,
  decay: chex.Numeric,
  mix: chex.Numeric,
) -> chex.Array:
  """Re-weights steps by a belief that gathers evidence along the trajectory.

    bₖ = decay bₖ₋₁ + eₖ, from 0 at the first step
    w = 2 sigmoid(sign(A) bₖ)        A ((1 - mix) + mix w)

  bₖ is in log-odds. A reconstruction: the published filter was not found.

  Args:
    advantage_k: [S] float.
    evidence_k: [S] float, in nats, such as the mean teacher gap of the step.
    last_k: [S] bool, True at the final step of each trajectory and on unused
      slots.
    decay: Share of the belief that a step hands on, in [0, 1].
    mix: Share of the re-weighted advantage, in [0, 1].

  Returns:
    [S] float32.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.
  """
  advantage_k, evidence_k, last_k = map(
    jnp.asarray, (advantage_k, evidence_k, last_k)
  )
  chex.assert_rank(advantage_k, 1)
  chex.assert_equal_shape([advantage_k, evidence_k, last_k])
  chex.assert_type([advantage_k, evidence_k, last_k], [float, float, bool])
  first_k = jnp.roll(last_k, 1).at[0].set(True)

  def body(before, x):
    evidence, first = x
    # A factor of 0 would not keep a NaN out.
    now = decay * jnp.where(first, 0.0, before) + evidence
    return now, now

  kind = floats.common(advantage_k, evidence_k, decay)
  evidence_k, decay = evidence_k.astype(kind), floats.constant(decay, kind)
  start = jnp.isfinite(evidence_k[0]).astype(kind) * 0
  _, belief_k = jax.lax.scan(body, start, (evidence_k, first_k))
  advantage_k = advantage_k.astype(kind)
  weight_k = 2.0 * jax.nn.sigmoid(jnp.sign(advantage_k) * belief_k)
  return _mixed(advantage_k, weight_k, jnp.ones_like(last_k), mix)


def annealed(
  mix: chex.Numeric, update: chex.Numeric, *, updates: int
) -> chex.Array:
  """Share of the re-weighted advantage as training goes on.

    mix max(updates - update, 0) / updates

  Exactly 0 from update `updates` on: the advantage is then left as it is.

  Args:
    mix: Share at update 0, in [0, 1].
    update: Number of updates done, an integer scalar.
    updates: Number of updates over which the share falls to 0, at least 1.

  Returns:
    Scalar, float32.

  Source: SERL, arXiv:2605.19447, public code; StepOPSD, arXiv:2605.27140.
  """
  # Subtracted before dividing: 1 - 50 / 50 is 1e-8 where a compiler multiplies
  # by the reciprocal.
  left = jnp.maximum(updates - jnp.asarray(update), 0)
  return mix * left.astype(floats.common(mix)) / updates


def centered_in_step(
  x_t: chex.Array, step_ids: chex.Array, *, num_steps: int
) -> chex.Array:
  """Distance of each action token from the mean of its step, 0 elsewhere."""
  mean_k = segments.step_mean(x_t, step_ids, num_steps=num_steps)
  mean_t = segments.to_tokens(mean_k, step_ids)
  return jnp.where(jnp.asarray(step_ids) > 0, x_t - mean_t, 0.0)


def overlong_penalty(
  length: chex.Array, *, max_length: chex.Numeric, cache: chex.Numeric
) -> chex.Array:
  """Reward that falls from 0 to -1 over the last `cache` tokens allowed.

    clip((max_length - cache - length) / cache, -1, 0)

  Args:
    length: Any shape, number of response tokens.
    max_length: Tokens allowed.
    cache: Tokens before the limit at which the penalty starts; with 0 it is -1
      beyond the limit, and 0 up to it.

  Returns:
    Same shape, float32, in [-1, 0].

  Source: Yu et al. 2025, DAPO, arXiv:2503.14476, eq. 13.
  """
  length = jnp.asarray(length)
  if not jnp.issubdtype(length.dtype, jnp.floating):
    length = length.astype(jnp.float32)
  length = floats.wide(length)
  max_length, cache = (
    floats.constant(x, length.dtype) for x in (max_length, cache)
  )
  room = max_length - cache - length
  return jnp.clip(room / jnp.where(cache > 0, cache, 1), -1.0, 0.0)


def _signed_gap(advantage_t, gap_t, action_mask):
  chex.assert_equal_shape([advantage_t, gap_t, action_mask])
  chex.assert_type([advantage_t, gap_t, action_mask], [float, float, bool])
  advantage_t, gap_t = floats.of(advantage_t, jnp.where(action_mask, gap_t, 0))
  return jnp.sign(advantage_t) * gap_t


def _mixed(advantage, weight, mask, mix):
  advantage, weight = floats.of(advantage, weight)
  mix = floats.constant(mix, weight.dtype)
  scale = (1.0 - mix) + mix * weight
  return jnp.where(mask, advantage * scale, advantage)
