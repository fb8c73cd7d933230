"""Log-ratios between policies, their pooling over a step, rollout correction.

zᵢ = log π_new(aᵢ) - log π_old(aᵢ), at least float32 and masked before exp.
"""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats, segments, stats


def log_ratio(
  logp_t: chex.Array, behaviour_logp_t: chex.Array, action_mask: chex.Array
) -> chex.Array:
  """Log-ratio of every action token.

    zᵢ = log π(aᵢ) - log π_behaviour(aᵢ)

  It is 0, and the ratio 1, while the policy is still the one that sampled.

  Args:
    logp_t: [B, T] float log-probability under the policy that is trained.
    behaviour_logp_t: [B, T] float log-probability under the policy that
      sampled.
    action_mask: [B, T] bool; neither log-probability is read elsewhere.

  Returns:
    [B, T], float32 or float64, 0 outside the mask, where no gradient flows
    either.

  Raises:
    AssertionError: the shapes differ, or log-probabilities are not floats.
  """
  logp_t, behaviour_logp_t, action_mask = map(
    jnp.asarray, (logp_t, behaviour_logp_t, action_mask)
  )
  chex.assert_equal_shape([logp_t, behaviour_logp_t, action_mask])
  chex.assert_type(
    [logp_t, behaviour_logp_t, action_mask], [float, float, bool]
  )
  logp_t, behaviour_logp_t = floats.of(
    *(jnp.where(action_mask, x, 0) for x in (logp_t, behaviour_logp_t))
  )
  return logp_t - behaviour_logp_t


def log_ratio_mean(
  z_t: chex.Array, step_ids: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """Sum of z over the action tokens and their number, as (sum, weight).

  The quotient over a whole mini-batch is the μ of CAPO.

  Args:
    z_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.

  Returns:
    Two scalars, float32 or float64.
  """
  return stats.masked_sum(z_t, jnp.asarray(step_ids) > 0)


def pooled_log_ratio(
  z_t: chex.Array,
  step_ids: chex.Array,
  *,
  num_steps: int,
  power: chex.Numeric,
  center: bool,
) -> chex.Array:
  """Log-ratio of a whole step.

    log wₖ = (1 / L^power) Σᵢ zᵢ                      center False
    log wₖ = μ + (1 / L^power) Σᵢ (zᵢ - μ)            center True

  μ is the mean of z over all action tokens given, a constant for the gradient.
  Where a mini-batch is worked through in parts, compute μ once for the whole
  and call `pooled_log_ratio_centered`.

  With power 0 and no centre this is the ratio of the whole action, the product
  of its token ratios; with power 1 it is the ratio of StepPO and GSPO; with
  power 0.5 and the centre that of CAPO. With power 1 the centre cancels. A step
  of one token has the ratio of that token, whatever the power and the centre.

  Args:
    z_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.
    num_steps: S, slot 0 included.
    power: 0 product of the token ratios, 0.5 square root, 1 geometric mean.
    center: True for CAPO.

  Returns:
    [S], float32 or float64; 0 for slot 0 and for steps without action tokens.

  Raises:
    AssertionError: the shapes differ, or `z_t` is not floating point.

  Source: arXiv:2604.18401, v4 (geometric) and v5 (centred square root).
  """
  mu = 0.0
  if center:
    total, count = log_ratio_mean(z_t, step_ids)
    mu = jax.lax.stop_gradient(total / jnp.maximum(count, 1))
  return pooled_log_ratio_centered(
    z_t, step_ids, mu, num_steps=num_steps, power=power
  )


def pooled_log_ratio_centered(
  z_t: chex.Array,
  step_ids: chex.Array,
  mu: chex.Numeric,
  *,
  num_steps: int,
  power: chex.Numeric,
) -> chex.Array:
  """Log-ratio of a whole step around a given centre.

    log wₖ = μ + (1 / L^power) Σᵢ (zᵢ - μ)

  With μ = 0, with power 1 and for a step of one token the centre plays no part:
  see `pooled_log_ratio`.

  Args:
    z_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.
    mu: Centre; 0 gives the uncentred ratio.
    num_steps: S, slot 0 included.
    power: 0 product of the token ratios, 0.5 square root, 1 geometric mean.

  Returns:
    [S], float32 or float64; 0 for slot 0 and for steps without action tokens.

  Raises:
    AssertionError: the shapes differ, or `z_t` is not floating point.
  """
  z_t = jnp.asarray(z_t)
  kind = floats.common(z_t, mu, power)
  mu, power = (floats.constant(x, kind) for x in (mu, power))
  offset_k = segments.step_sum(
    z_t.astype(kind) - mu, step_ids, num_steps=num_steps
  )
  count_k = segments.step_count(step_ids, num_steps=num_steps)
  length_k = jnp.maximum(count_k, 1).astype(kind)
  pooled_k = mu + offset_k / length_k**power
  return jnp.where(count_k > 0, pooled_k, 0.0)


def rollout_weight(
  z_t: chex.Array,
  step_ids: chex.Array,
  *,
  num_steps: int,
  kind: str,
  low: chex.Numeric,
  high: chex.Numeric,
) -> chex.Array:
  """Weight that corrects for a sampler that differs from the learner's policy.

  It is a constant for the gradient: of a loss that is weighted by it only the
  rest is differentiated, even where `z_t` depends on what is trained. See
  `differentiable_rollout_weight` for one that is no constant.

  zᵢ is the log-ratio of the policy before the update to the sampler's.

  | kind | weight of token i of step k |
  |---|---|
  | `tis_token` | min(exp zᵢ, high) |
  | `tis_step` | min(exp Σ z, high) |
  | `icepop` | exp zᵢ if it lies in [low, high], else 0 |
  | `geometric` | 1 if exp mean z lies in [low, high], else 0 |

  With low = 0 and high = ∞ nothing is cut: `tis_token` and `icepop` are then
  plain importance weights by the token, `tis_step` is that of the whole action,
  and `geometric` is 1 everywhere. For steps of one token `tis_step` is
  `tis_token`. Where sampler and learner agree (z = 0) every weight is 1, as
  long as 1 lies inside the band.

  Args:
    z_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.
    num_steps: S, slot 0 included.
    kind: One of the four names above.
    low: Lower end of the band; not read by the `tis` kinds.
    high: Cap, or upper end of the band.

  Returns:
    [B, T], at least float32, a constant for the gradient; 0 outside actions.

  Raises:
    ValueError: `kind` is unknown.

  Source: Yao et al. 2025 (truncated importance sampling); Ling team 2025
    (IcePop), arXiv:2510.18855.
  """
  return jax.lax.stop_gradient(
    differentiable_rollout_weight(
      z_t, step_ids, num_steps=num_steps, kind=kind, low=low, high=high
    )
  )


def differentiable_rollout_weight(
  z_t: chex.Array,
  step_ids: chex.Array,
  *,
  num_steps: int,
  kind: str,
  low: chex.Numeric,
  high: chex.Numeric,
) -> chex.Array:
  """`rollout_weight` with gradients in `z_t` and in `high`.

  For those who differentiate training itself: to one update the weight is a
  constant, but the log-ratios it is made of are what the updates before made
  them. Where a band cuts, as in "icepop" and "geometric", the weight jumps, and
  its gradient in the ends of the band is 0.

  Args:
    z_t: As in `rollout_weight`, like the others.
    step_ids: Likewise.
    num_steps: Likewise.
    kind: Likewise.
    low: Likewise.
    high: Likewise.

  Returns:
    [B, T], at least float32; 0 outside actions.

  Raises:
    ValueError: `kind` is unknown.
  """
  z_t, step_ids = jnp.asarray(z_t), jnp.asarray(step_ids)
  segments.check_step_ids(step_ids, z_t)
  if kind not in _ROLLOUT_WEIGHTS:
    raise ValueError(f"kind is one of {sorted(_ROLLOUT_WEIGHTS)}, not {kind!r}")
  z_t = floats.wide(jnp.where(step_ids > 0, z_t, 0))
  low, high = (floats.constant(x, z_t.dtype) for x in (low, high))
  weight_t = _ROLLOUT_WEIGHTS[kind](z_t, step_ids, num_steps, low, high)
  return jnp.where(step_ids > 0, weight_t, 0.0)


def _tis_token(z_t, step_ids, num_steps, low, high):
  del step_ids, num_steps, low
  return jnp.minimum(jnp.exp(z_t), high)


def _tis_step(z_t, step_ids, num_steps, low, high):
  del low
  z_k = segments.step_sum(z_t, step_ids, num_steps=num_steps)
  return segments.to_tokens(jnp.minimum(jnp.exp(z_k), high), step_ids)


def _icepop(z_t, step_ids, num_steps, low, high):
  del step_ids, num_steps
  ratio_t = jnp.exp(z_t)
  return jnp.where((ratio_t >= low) & (ratio_t <= high), ratio_t, 0.0)


def _geometric(z_t, step_ids, num_steps, low, high):
  ratio_k = jnp.exp(segments.step_mean(z_t, step_ids, num_steps=num_steps))
  inside_k = (ratio_k >= low) & (ratio_k <= high)
  return segments.to_tokens(inside_k.astype(ratio_k.dtype), step_ids)


_ROLLOUT_WEIGHTS = {
  "tis_token": _tis_token,
  "tis_step": _tis_step,
  "icepop": _icepop,
  "geometric": _geometric,
}
