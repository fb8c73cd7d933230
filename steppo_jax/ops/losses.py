"""Surrogates, value loss and KL estimates, all unreduced."""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats

# exp(20) = 4.9e8 is past every clip and far from the end of float32.
LOG_BOUND = 20.0


def clipped_surrogate(
  ratio: chex.Array,
  advantage: chex.Array,
  *,
  clip_low: chex.Numeric,
  clip_high: chex.Numeric,
  dual_clip: chex.Numeric | None,
) -> tuple[chex.Array, chex.Array]:
  """Pessimistic of the plain and the clipped policy-gradient loss.

    max(-w A, -clip(w, 1 - low, 1 + high) A), and at most -c A where A < 0

  At w = 1, before anything was trained, nothing is clipped, and the gradient is
  that of REINFORCE, -A ∇log w. With both clips infinite and no dual clip it is
  the unbounded surrogate -w A of importance sampling.

  Args:
    ratio: Any shape, float; w on the clock of the ratio.
    advantage: Same shape, float.
    clip_low: Distance below 1 at which the ratio is clipped.
    clip_high: Distance above 1.
    dual_clip: c > 1, or None for no bound where A < 0.

  Returns:
    Loss, float32 or float64, and whether a clip cut its gradient to 0, bool.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.

  Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; Ye et al. 2020,
    arXiv:1912.09729, eq. 5 (dual clip).
  """
  ratio, advantage = _floats(ratio, advantage)
  plain = -ratio * advantage
  bounded = -_clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantage
  # At the edge itself nothing is clipped: a maximum would halve the gradient.
  clipped = bounded > plain
  loss = jnp.where(clipped, bounded, plain)
  if dual_clip is None:
    return loss, clipped
  ceiling = -floats.constant(dual_clip, advantage.dtype) * advantage
  capped = (advantage < 0) & (loss > ceiling)
  return jnp.where(capped, ceiling, loss), clipped | capped


def cispo(
  logp: chex.Array,
  ratio: chex.Array,
  advantage: chex.Array,
  *,
  clip_low: chex.Numeric,
  clip_high: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """REINFORCE weighted by a clipped ratio that is a constant.

    -sg(clip(w, 1 - low, 1 + high)) A log π(a)

  The weight is a constant for the gradient of the loss. It is none for the
  gradient of that gradient, so that what training makes of the loss is
  differentiated as what it is. No token loses its gradient. At w = 1 it is
  REINFORCE. With both clips infinite it has the gradient of the surrogate -w A
  without a clip, because ∇w = w ∇log π for the ratio w of that same action.

  Args:
    logp: Any shape, float.
    ratio: Same shape, float.
    advantage: Same shape, float.
    clip_low: Distance below 1 at which the weight is clipped.
    clip_high: Distance above 1.

  Returns:
    Loss, float32 or float64, and whether the weight was clipped, bool.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.

  Source: MiniMax 2025, arXiv:2506.13585, eq. 4.
  """
  logp, ratio, advantage = _floats(logp, ratio, advantage)
  weight = _clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  loss = -_constant_times(weight, advantage * logp)
  return loss, weight != ratio


def soft_gate(
  ratio: chex.Array,
  advantage: chex.Array,
  *,
  tau: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Surrogate under a smooth gate instead of a clip.

    -(4 / τ) sigmoid(τ (w - 1)) A        gradient -A at w = 1

  The gradient in w is -A times a bump that is 1 at w = 1 and falls to 0 on
  either side. For τ towards 0 the bump is 1 everywhere, as in -w A without a
  clip; the larger τ, the closer to 1 a ratio must be to be trained.

  Args:
    ratio: Any shape, float.
    advantage: Same shape, float.
    tau: Sharpness of the gate, > 0; may be an array in the same shape.

  Returns:
    Loss, float32 or float64, and False everywhere: nothing is clipped.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.

  Source: Gao et al. 2025, Soft Adaptive Policy Optimization, arXiv:2511.20347.
  """
  ratio, advantage = _floats(ratio, advantage)
  tau = floats.constant(tau, ratio.dtype)
  gate = (4.0 / tau) * jax.nn.sigmoid(tau * (ratio - 1.0))
  return -gate * advantage, jnp.zeros(ratio.shape, bool)


def log_clip(
  z_t: chex.Array,
  advantage: chex.Array,
  *,
  clip_low: chex.Numeric,
  clip_high: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Pessimistic of a log-ratio and its clipped form, before it is pooled.

    sign(A) min(sign(A) z, sign(A) clip(z, -low, high))

  Pooled by the geometric mean, this is the ratio of GMPO. With both clips
  infinite z stays as it is, and the pooled ratio is the one of GSPO and StepPO.
  For steps of one token the loss -w A is `clipped_surrogate` with the bounds
  exp(-low) and exp(high).

  Args:
    z_t: Any shape, float log-ratio.
    advantage: Same shape, float.
    clip_low: Distance below 0 at which z is clipped.
    clip_high: Distance above 0.

  Returns:
    Log-ratio, float32 or float64, and whether it was clipped, bool.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.

  Source: Zhao et al. 2025, arXiv:2507.20673.
  """
  z_t, advantage = _floats(z_t, advantage)
  bounded = _clip(z_t, -clip_low, clip_high)
  clipped = jnp.where(advantage >= 0, z_t > bounded, z_t < bounded)
  return jnp.where(clipped, bounded, z_t), clipped


@jax.custom_jvp
def _constant_times(weight, x):
  return weight * x


@_constant_times.defjvp
def _(primals, tangents):
  weight, x = primals
  # The weight has no tangent; where it is a factor of one, it is itself.
  return _constant_times(weight, x), weight * tangents[1]


def value_loss(
  value: chex.Array,
  old_value: chex.Array,
  target: chex.Array,
  *,
  value_clip: chex.Numeric | None,
) -> tuple[chex.Array, chex.Array]:
  """Half squared error of the critic, clipped around its old estimate.

    ½ max((v - G)², (clip(v, v_old ± c) - G)²)

  Without a clip, and wherever v is still within c of v_old, it is half the
  squared error.

  Args:
    value: Any shape, float; v of the critic that is trained.
    old_value: Same shape, float; v before the update.
    target: Same shape, float; G, a constant.
    value_clip: c in units of value, or None for the plain error.

  Returns:
    Loss, at least float32, and whether the clipped error was the larger, bool.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.

  Source: Schulman et al. 2017, public code of PPO.
  """
  value, old_value, target = _floats(value, old_value, target)
  plain = jnp.square(value - target)
  if value_clip is None:
    return 0.5 * plain, jnp.zeros(plain.shape, bool)
  value_clip = floats.constant(value_clip, value.dtype)
  near = jnp.clip(value, old_value - value_clip, old_value + value_clip)
  bounded = jnp.square(near - target)
  clipped = bounded > plain
  return 0.5 * jnp.where(clipped, bounded, plain), clipped


def kl_k1(logp: chex.Array, ref_logp: chex.Array) -> chex.Array:
  """Estimate log π - log π_ref of the KL divergence: unbiased, any sign.

  Its gradient has mean 0 under π: use it in a reward, not in a loss. It is 0
  where the two policies agree on the token, as `kl_k2` and `kl_k3` are.
  """
  logp, ref_logp = _floats(logp, ref_logp)
  return logp - ref_logp


def kl_k2(logp: chex.Array, ref_logp: chex.Array) -> chex.Array:
  """Estimate ½ (log π - log π_ref)²: biased, with the gradient of the KL."""
  return 0.5 * jnp.square(kl_k1(logp, ref_logp))


def kl_k3(logp: chex.Array, ref_logp: chex.Array) -> chex.Array:
  """Estimate exp(d) - d - 1, d = log π_ref - log π: unbiased, never negative.

  d is held within ±20. The gradient is that of the KL from the reference to π
  near d = 0, and of its first order only. For small d it is ½ d², the estimate
  `kl_k2`.

  Args:
    logp: Any shape, float log-probability under the policy.
    ref_logp: Same shape, float, under the reference policy.

  Returns:
    Same shape, float32 or float64.

  Raises:
    AssertionError: the shapes differ or the arrays are not floating point.

  Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
  """
  gap = bounded_log(-kl_k1(logp, ref_logp))
  return jnp.expm1(gap) - gap


def bounded_exp(z: chex.Array) -> chex.Array:
  """exp of a log-ratio held within ±20, so that no ratio overflows."""
  return jnp.exp(bounded_log(z))


def bounded_log(z: chex.Array) -> chex.Array:
  """A log-ratio held within ±20; beyond, and not at ±20, no gradient flows."""
  z = jnp.asarray(z)
  bound = jnp.asarray(LOG_BOUND, z.dtype)
  return jnp.where(z > bound, bound, jnp.where(z < -bound, -bound, z))


def _clip(x, low, high):
  low, high = (floats.constant(bound, x.dtype) for bound in (low, high))
  return jnp.clip(x, low, high)


def _floats(*arrays):
  arrays = [jnp.asarray(x) for x in arrays]
  chex.assert_equal_shape(arrays)
  for x in arrays:
    chex.assert_type(x, float)
  return floats.of(*arrays)
