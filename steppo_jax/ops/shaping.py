"""Re-weighting of advantages. No function here changes the sign of any.

Teachers and weights decide how much credit an action gets, rewards decide of
which sign.
"""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats, groups, losses, segments, stats


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

  Source: StepOPSD, arXiv:2605.27140, public code.
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


def belief_filter(
  evidence_k: chex.Array,
  success_k: chex.Array,
  advantage_k: chex.Array,
  last_k: chex.Array,
  *,
  mix: chex.Numeric,
  band: chex.Numeric,
  decay: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Re-weights steps by how far each moved the belief in a success.

    B₀ = clip(success, 0.001, 0.999)        cₖ = decay cₖ₋₁ + eₖ, c₀ = 0
    Bₖ = sigmoid(logit B₀ + cₖ)             qₖ = sign(A) (Bₖ - Bₖ₋₁)
    zₖ = (qₖ - mean) / std over the steps of the trajectory, n in the deviation
    wₖ = clip(1 + band zₖ, 1 - band, 1 + band)        A ((1 - mix) + mix wₖ)

  A step that moved the belief further in the direction of the outcome than the
  other steps of its trajectory gets more of the credit. With decay 1 all
  evidence so far counts alike, with decay 0 that of the step alone. With mix 0
  or band 0, in a trajectory of one step and where all steps moved the belief by
  the same, the advantage stays as it is.

  Args:
    evidence_k: [S] float in nats, the sum over the tokens of step k of teacher
      log-probability minus policy log-probability.
    success_k: [S] float in [0, 1], share of the group of step k that succeeded,
      the same for all steps of a trajectory: the belief before its first step.
    advantage_k: [S] float.
    last_k: [S] bool, True at the final step of each trajectory and on unused
      slots. The steps of a trajectory are adjacent and in order.
    mix: Share of the re-weighted advantage, in [0, 1].
    band: Largest distance of a weight from 1, in [0, 1].
    decay: Share of the evidence that a step hands on, in [0, 1].

  Returns:
    Beliefs Bₖ after each step [S] and advantages [S], float32.

  Raises:
    AssertionError: the arrays differ in shape or type.

  Source: AgentOPSD, arXiv:2608.05987, public code of the formula.
  """
  arrays = tuple(map(jnp.asarray, (evidence_k, success_k, advantage_k)))
  last_k = jnp.asarray(last_k)
  chex.assert_rank(last_k, 1)
  chex.assert_equal_shape([*arrays, last_k])
  chex.assert_type([*arrays, last_k], [float, float, float, bool])
  kind = floats.common(*arrays, mix, band, decay)
  evidence_k, success_k, advantage_k = (x.astype(kind) for x in arrays)
  decay, band = floats.constant(decay, kind), floats.constant(band, kind)
  first_k = jnp.roll(last_k, 1).at[0].set(True)

  def body(before, x):
    evidence, first = x
    now = decay * jnp.where(first, 0.0, before) + evidence
    return now, now

  start = jnp.isfinite(evidence_k[0]).astype(kind) * 0
  _, gathered_k = jax.lax.scan(body, start, (evidence_k, first_k))
  prior_k = jax.scipy.special.logit(jnp.clip(success_k, 1e-3, 1.0 - 1e-3))
  belief_k = jax.nn.sigmoid(prior_k + gathered_k)
  before_k = jnp.where(first_k, jax.nn.sigmoid(prior_k), jnp.roll(belief_k, 1))
  moved_k = jnp.sign(advantage_k) * (belief_k - before_k)
  number_k = jnp.cumsum(first_k.astype(jnp.int32)) - 1
  z_k = groups.population_zscore(
    moved_k,
    number_k,
    jnp.ones_like(last_k),
    num_groups=last_k.shape[0],
    eps=0.0,
  )
  weight_k = jnp.clip(1.0 + band * z_k, 1.0 - band, 1.0 + band)
  return belief_k, _mixed(advantage_k, weight_k, jnp.ones_like(last_k), mix)


def focus_weight(
  energy_t: chex.Array,
  reasoning_t: chex.Array,
  action_t: chex.Array,
  *,
  alpha: chex.Numeric,
  beta: chex.Numeric,
) -> chex.Array:
  """Weight of each token in the loss: little on thoughts, more on hard actions.

    w = alpha on reasoning tokens
    w = 1 + beta sigmoid((E - mean) / std) on action tokens

  The loss is then Σ w loss / Σ w over the tokens. Mean and deviation (n in the
  deviation) are taken over all action tokens given, so that whole batches are
  to be given. With alpha 1 and beta 0 every weight is exactly 1, and the loss
  is the mean over tokens. Where all energies are equal, as where there is one
  action token, each action token weighs 1 + beta / 2.

  Args:
    energy_t: [B, T] float, E = -log Σ exp(logits) of the frozen reference at
      the position that predicts the token, at temperature 1; read on action
      tokens only.
    reasoning_t: [B, T] bool, sampled tokens inside of a thought.
    action_t: [B, T] bool, all other sampled tokens. A token of both counts as
      an action.
    alpha: Weight of reasoning tokens, at least 0.
    beta: Largest extra weight of an action token, at least 0.

  Returns:
    [B, T] float32, 0 where a token is of neither kind.

  Raises:
    AssertionError: the arrays differ in shape or type.

  Source: ActFocus, arXiv:2605.14558.
  """
  arrays = tuple(map(jnp.asarray, (energy_t, reasoning_t, action_t)))
  chex.assert_equal_shape(arrays)
  chex.assert_type(arrays, [float, bool, bool])
  energy_t, reasoning_t, action_t = arrays
  kind = floats.common(energy_t, alpha, beta)
  energy_t = energy_t.astype(kind)
  alpha, beta = (floats.constant(x, kind) for x in (alpha, beta))
  mean, variance = stats.masked_moments(energy_t, action_t)
  count = jnp.sum(action_t, dtype=kind)
  variance = variance * jnp.maximum(count - 1, 0) / jnp.maximum(count, 1)
  offset_t = jnp.where(action_t & (variance != 0), energy_t - mean, 0.0)
  gate_t = jax.nn.sigmoid(offset_t / stats.deviation(variance))
  thought_t = jnp.where(reasoning_t, jnp.asarray(alpha, kind), 0.0)
  return jnp.where(action_t, 1.0 + beta * gate_t, thought_t)


def equal_step_scale(
  advantage_t: chex.Array,
  step_ids: chex.Array,
  trajectory_k: chex.Array,
  *,
  num_steps: int,
  limit: chex.Numeric,
) -> chex.Array:
  """Factors that bring the steps of a trajectory to one mean |A|.

    mₖ = mean |A| over the tokens of step k        m = mean of mₖ over the steps
    clip(m / (mₖ + 1e-6), 1 / limit, limit)

  After a teacher has re-weighted the tokens of some steps more than those of
  others, each step of a trajectory counts about the same again. With limit 1
  every factor is 1. Steps without action tokens are in no mean.

  Args:
    advantage_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.
    trajectory_k: [S] int32 trajectory of each step, below S.
    num_steps: S, slot 0 included.
    limit: Largest factor, at least 1; the smallest is its inverse.

  Returns:
    [S] float32; 1 for slot 0, for steps without action tokens, and in
    trajectories with fewer than two steps that have some.

  Raises:
    AssertionError: the shapes do not fit, or `advantage_t` is not floating
      point.

  Source: StepOPSD, arXiv:2605.27140, public code.
  """
  trajectory_k = jnp.asarray(trajectory_k)
  chex.assert_shape(trajectory_k, (num_steps,))
  chex.assert_type(trajectory_k, int)
  size_k = segments.step_mean(
    jnp.abs(jnp.asarray(advantage_t)), step_ids, num_steps=num_steps
  )
  acted_k = segments.step_count(step_ids, num_steps=num_steps) > 0
  where = (trajectory_k, acted_k)
  mean_n = groups.group_mean(size_k, *where, num_groups=num_steps)
  count_n = groups.group_count(*where, num_groups=num_steps)
  scale_k = mean_n[trajectory_k] / (size_k + 1e-6)
  limit = floats.constant(limit, scale_k.dtype)
  scale_k = jnp.clip(scale_k, 1.0 / limit, limit)
  compared_k = acted_k & (count_n[trajectory_k] > 1)
  return jnp.where(compared_k, scale_k, 1.0)


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
  kind = floats.common(mix)
  mix, updates = (floats.constant(x, kind) for x in (mix, updates))
  update = jnp.asarray(update).astype(kind)
  return mix * jnp.maximum(updates - update, 0) / updates


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
