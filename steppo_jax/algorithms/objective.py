"""Log-probabilities, values and advantages in; loss and metrics out.

Everything is a pair (sum, weight). The learner adds the pairs over microbatches
and devices and divides once.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from steppo_jax.algorithms import estimators
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.algorithms.table import ALGORITHMS, Algorithm
from steppo_jax.batch import Advantages, StepTable, TokenBatch
from steppo_jax.ops import aggregation, floats, losses, ratios, segments, stats

Pair = tuple[chex.Array, chex.Array]
Metrics = dict[str, Pair]


def advantages(
  algorithm: Algorithm,
  batch: TokenBatch,
  table: StepTable,
  value_bt: chex.Array | None,
  extras: estimators.Extras | None,
  *,
  differentiable: bool = False,
) -> Advantages:
  """Runs the estimator of the algorithm on the whole batch.

  Args:
    algorithm: Row of the table.
    batch: Tokens [B, T], after `algorithms.estimators.resolve_truncation`.
    table: Steps [S], likewise.
    value_bt: [B, T] critic output at every token, None without a critic.
    extras: Arrays that few methods need, or None.
    differentiable: True lets gradients reach critic and extras, too. Within one
      update they are constants; over several they are not, as the critic of an
      update is what the updates before made of it. `learner.update.update`
      takes that of its spec.

  Returns:
    Advantages and value targets. Their gradients reach `discount`, `lambda_`
    and the other constants; see also `differentiable`.
  """
  estimator = _registered("estimator", algorithm.estimator)
  extras = extras or estimators.Extras()
  if not differentiable:
    value_bt, extras = jax.lax.stop_gradient((value_bt, extras))
  return estimator(
    batch,
    table,
    value_bt,
    extras,
    discount=algorithm.discount,
    lambda_=algorithm.lambda_,
    **dict(algorithm.options),
  )


def policy_log_ratio(
  algorithm: Algorithm,
  logp_t: chex.Array,
  batch: TokenBatch,
  *,
  num_steps: int,
  mu: chex.Numeric | None,
) -> chex.Array:
  """Log-ratio on the clock of the algorithm's ratio.

  Args:
    algorithm: Row of the table.
    logp_t: [B, T] log-probability of each action token under the policy.
    batch: The same rows.
    num_steps: S.
    mu: Mean token log-ratio of the whole mini-batch where
      `algorithm.center` holds (`ratios.log_ratio_mean`); not read otherwise.
      The objective takes it for a constant: where it is computed from `logp_t`,
      stop its gradient.

  Returns:
    [B, T] for a token ratio, [S] for a step ratio; 0 where there is no action.

  Raises:
    ValueError: a centred ratio was given no `mu`.
  """
  z_t = ratios.log_ratio(logp_t, batch.behaviour_logp, batch.step_ids > 0)
  if algorithm.ratio == "token":
    return z_t
  if algorithm.center and mu is None:
    raise ValueError("a centred ratio needs mu, the mean of its mini-batch")
  return ratios.pooled_log_ratio_centered(
    z_t,
    batch.step_ids,
    mu if algorithm.center else 0.0,
    num_steps=num_steps,
    power=algorithm.power,
  )


def surrogate(
  algorithm: Algorithm,
  advantage: chex.Array,
  logp_t: chex.Array,
  batch: TokenBatch,
  *,
  num_steps: int,
  mu: chex.Numeric | None,
) -> tuple[chex.Array, chex.Array, chex.Array, chex.Array]:
  """What ratio and advantage make of each action, before any average.

  Args:
    algorithm: Row of the table.
    advantage: [S], or [B, T] for the rows of `batch`.
    logp_t: [B, T] log-probability of each action token under the policy, finite
      everywhere.
    batch: Rows of the mini-batch.
    num_steps: S.
    mu: See `policy_log_ratio`.

  Returns:
    Loss, whether the clip bound it (for "log_clip" of which share of its
    tokens), log-ratio, and advantage, on the clock of the ratio: [S] or [B, T].
    The loss may be [B, T] beside a ratio of steps.
  """
  z = policy_log_ratio(algorithm, logp_t, batch, num_steps=num_steps, mu=mu)
  advantage = _to_clock(advantage, z, batch.step_ids, num_steps)
  loss, clipped, z = _registered("surrogate", algorithm.surrogate)(
    algorithm, z, advantage, logp_t, batch
  )
  return loss, clipped, z, advantage


def policy_loss(
  algorithm: Algorithm,
  advantage: chex.Array,
  logp_t: chex.Array,
  entropy_t: chex.Array,
  batch: TokenBatch,
  table: StepTable,
  *,
  mu: chex.Numeric | None,
  ref_logp_t: chex.Array | None,
  weight_t: chex.Array | None = None,
) -> tuple[Pair, Metrics]:
  """Loss of the policy on some rows of a mini-batch.

    surrogate + kl_coef k3(π, π_ref) - entropy_coef H, averaged by `aggregation`

  Args:
    algorithm: Row of the table.
    advantage: [S], or [B, T] for the rows of `batch`.
    logp_t: [B, T] log-probability of each action token under the policy.
    entropy_t: [B, T] entropy in nats where each action token was sampled.
    batch: Rows of the mini-batch; their `step_ids` index the full table.
    table: All steps [S].
    mu: See `policy_log_ratio`.
    ref_logp_t: [B, T] log-probability under the reference policy, or None.
    weight_t: [B, T] factor of each token's surrogate, or None.

  Returns:
    (sum, weight) of the loss, and metrics as (sum, weight) by name. Of these
    "kl_reference" is averaged as the loss is, and "kl_per_token", which there
    is with a reference, is a mean over tokens whatever the aggregation. It is
    the only one with gradients: the weight of the KL in the next update follows
    it where the row has a `kl_target`.
  """
  num_steps = table.live.shape[0]
  ids, mask = batch.step_ids, batch.step_ids > 0
  # Values outside the actions are masked where they are added up; here their
  # gradients end, even where poison would have made one NaN.
  logp_t = floats.wide(jnp.where(mask, logp_t, 0))
  loss, clipped, z, advantage = surrogate(
    algorithm, advantage, logp_t, batch, num_steps=num_steps, mu=mu
  )
  loss_t = loss if loss.ndim == 2 else segments.to_tokens(loss, ids)
  if weight_t is not None:
    weight_t, loss_t = floats.of(weight_t, loss_t)
    loss_t = weight_t * loss_t
  if algorithm.sequence_mask is not None:
    near_t = _near_enough(algorithm, advantage, logp_t, batch, num_steps)
    loss_t = jnp.where(near_t, loss_t, 0.0)
  kl_t = jnp.zeros_like(loss_t)
  if ref_logp_t is not None:
    kl_t = losses.kl_k3(*floats.of(logp_t, ref_logp_t))
  loss_t, kl_t, entropy_t = floats.of(loss_t, kl_t, entropy_t)
  kl_coef, entropy_coef = (
    floats.constant(x, loss_t.dtype)
    for x in (algorithm.kl_coef, algorithm.entropy_coef)
  )
  total_t = loss_t + kl_coef * kl_t - entropy_coef * entropy_t
  reduce = lambda x_t: aggregate(algorithm, x_t, ids, table)
  z_t = ratios.log_ratio(logp_t, batch.behaviour_logp, mask)
  clock = (
    mask if z.ndim == 2 else segments.step_count(ids, num_steps=num_steps) > 0
  )
  metrics = {
    "policy_loss": reduce(loss_t),
    "kl_reference": reduce(kl_t),
    "entropy": stats.masked_sum(entropy_t, mask),
    "ratio": stats.masked_sum(losses.bounded_exp(z), clock),
    "log_ratio_abs": stats.masked_sum(jnp.abs(z), clock),
    "clip_fraction": stats.masked_sum(clipped.astype(jnp.float32), clock),
    "advantage": stats.masked_sum(advantage, clock),
    "advantage_abs": stats.masked_sum(jnp.abs(advantage), clock),
    # Tokens of the policy that sampled: KL from it to the policy.
    "approx_kl": stats.masked_sum(losses.kl_k3(jnp.zeros_like(z_t), z_t), mask),
  }
  metrics = jax.lax.stop_gradient(metrics)
  if ref_logp_t is not None:
    metrics["kl_per_token"] = stats.masked_sum(kl_t, mask)
  return reduce(total_t), metrics


def value_loss_terms(
  algorithm: Algorithm,
  target: chex.Array,
  value_bt: chex.Array,
  old_value_bt: chex.Array,
  batch: TokenBatch,
  table: StepTable,
  *,
  boundary_local: chex.Array,
  here: chex.Array,
  value_clip: chex.Numeric | None,
) -> tuple[Pair, Metrics]:
  """Loss of the critic on some rows of a mini-batch.

  On the step clock there is one value per live step, at its boundary; on the
  token clock one per action token, at its parent.

  Args:
    algorithm: Row of the table; its `critic` names the clock.
    target: [S], or [B, T] for the rows of `batch`.
    value_bt: [B, T] output of the critic at every token.
    old_value_bt: [B, T] output before the update.
    batch: Rows of the mini-batch.
    table: All steps [S].
    boundary_local: [S] int32 flat index of each step's boundary in these rows;
      any valid index where `here` is False.
    here: [S] bool, True where the boundary lies in these rows.
    value_clip: Range of the clip in units of value, or None.

  Returns:
    (sum, weight) of the loss, and metrics as (sum, weight) by name.

  Raises:
    ValueError: the algorithm has no critic.
  """
  if algorithm.critic is None:
    raise ValueError(f"estimator {algorithm.estimator!r} has no critic")
  if algorithm.critic == "step":
    at, mask = boundary_local, here & table.live
  else:
    at, mask = segments.flat_parent(batch.parent), batch.step_ids > 0
  # A slot that is not trained reads its own target: error 0, gradient 0.
  target, value, old_value = floats.of(
    jnp.where(mask, target, 0),
    *(
      jnp.where(mask, jnp.asarray(x).reshape(-1)[at], 0)
      for x in (value_bt, old_value_bt)
    ),
  )
  loss, clipped = losses.value_loss(
    value, old_value, target, value_clip=value_clip
  )
  metrics = {
    "value": stats.masked_sum(value, mask),
    "value_target": stats.masked_sum(target, mask),
    "value_error_squared": stats.masked_sum(jnp.square(value - target), mask),
    "value_clip_fraction": stats.masked_sum(clipped.astype(jnp.float32), mask),
  }
  return stats.masked_sum(loss, mask), jax.lax.stop_gradient(metrics)


def _to_clock(advantage, z, step_ids, num_steps):
  """Brings the advantage to the clock of the ratio."""
  if advantage.ndim == z.ndim:
    return jnp.where(step_ids > 0, advantage, 0.0) if z.ndim == 2 else advantage
  if z.ndim == 2:
    return segments.to_tokens(advantage, step_ids)
  return segments.step_mean(advantage, step_ids, num_steps=num_steps)


def _near_enough(algorithm, advantage, logp_t, batch, num_steps):
  """[B, T] False in steps that are to be less likely and are so already.

  Steps whose mean advantage is negative and whose mean -z is above the bound.
  """
  ids = batch.step_ids
  z_t = ratios.log_ratio(logp_t, batch.behaviour_logp, ids > 0)
  far_k = -segments.step_mean(z_t, ids, num_steps=num_steps)
  if advantage.ndim == 2:
    advantage = segments.step_mean(advantage, ids, num_steps=num_steps)
  bound = floats.constant(algorithm.sequence_mask, far_k.dtype)
  gone_k = (advantage < 0) & (far_k > bound)
  return ~segments.to_tokens(jax.lax.stop_gradient(gone_k), ids)


def _clip(algorithm, z, advantage, logp_t, batch):
  del logp_t, batch
  loss, clipped = losses.clipped_surrogate(
    losses.bounded_exp(z),
    advantage,
    clip_low=algorithm.clip_low,
    clip_high=algorithm.clip_high,
    dual_clip=algorithm.dual_clip,
  )
  return loss, clipped, z


def _cispo(algorithm, z, advantage, logp_t, batch):
  del batch
  loss, clipped = losses.cispo(
    # The gradient of a step's log-ratio is that of its pooled log-prob.
    logp_t if z.ndim == 2 else z,
    losses.bounded_exp(z),
    advantage,
    clip_low=algorithm.clip_low,
    clip_high=algorithm.clip_high,
  )
  return loss, clipped, z


def _soft(algorithm, z, advantage, logp_t, batch):
  del logp_t, batch
  up, down = (floats.constant(x, z.dtype) for x in algorithm.tau)
  tau = jnp.where(advantage >= 0, up, down)
  loss, clipped = losses.soft_gate(losses.bounded_exp(z), advantage, tau=tau)
  return loss, clipped, z


def _log_clip(algorithm, z, advantage, logp_t, batch):
  num_steps, ids = z.shape[0], batch.step_ids
  z_t, clipped_t = losses.log_clip(
    ratios.log_ratio(logp_t, batch.behaviour_logp, ids > 0),
    segments.to_tokens(advantage, ids),
    clip_low=algorithm.clip_low,
    clip_high=algorithm.clip_high,
  )
  z = ratios.pooled_log_ratio_centered(
    z_t, ids, 0.0, num_steps=num_steps, power=algorithm.power
  )
  clipped = segments.step_mean(
    clipped_t.astype(jnp.float32), ids, num_steps=num_steps
  )
  ratio, advantage = floats.of(losses.bounded_exp(z), advantage)
  return -ratio * advantage, clipped, z


def _token_mean(x_t, step_ids, count_k, trajectory_k, *, constant):
  del count_k, trajectory_k, constant
  return aggregation.token_mean(x_t, step_ids)


def _step_mean(x_t, step_ids, count_k, trajectory_k, *, constant):
  del trajectory_k, constant
  num_steps = count_k.shape[0]
  return aggregation.step_mean_loss(x_t, step_ids, num_steps=num_steps)


def _without_constant(function):
  return lambda *arrays, constant: function(*arrays)


_SURROGATES = {
  "clip": _clip,
  "cispo": _cispo,
  "soft": _soft,
  "log_clip": _log_clip,
}

# What a row of the table names, by kind and name.
_FUNCTIONS: dict[str, dict[str, Callable]] = {
  "estimator": {
    name: getattr(estimators, name)
    for name in dict.fromkeys(row.estimator for row in ALGORITHMS.values())
  },
  "surrogate": _SURROGATES,
  "aggregation": {
    "token_mean": _token_mean,
    "step_mean_loss": _step_mean,
    "token_sum_over_constant": aggregation.token_sum_over_constant,
  }
  | {
    name: _without_constant(getattr(aggregation, name))
    for name in ("trajectory_step_mean", "trajectory_token_mean")
  },
}


def register(kind: str, name: str, function: Callable) -> None:
  """Gives rows of the table a function of one's own to name.

  Args:
    kind: What it is, and with it what it is called with:
      "estimator": (batch, table, value_bt, extras, *, discount, lambda_, and
        the row's `options`) -> `Advantages`; see `algorithms.estimators`.
      "surrogate": (row, z, advantage, logp_t, batch) -> (loss, clipped, z),
        with log-ratio z and advantage, [B, T] or [S], on the clock of the row's
        ratio. The loss is on that clock, or [B, T].
      "aggregation": (x_t, step_ids, count_k, trajectory_k, *, constant) ->
        (sum, weight); see `ops.aggregation`.
    name: What rows call it.
    function: Of arrays, traced by JAX.

  Raises:
    ValueError: there is no such kind, or the name is taken by another function.
  """
  if kind not in _FUNCTIONS:
    raise ValueError(f"kind={kind!r} is none of {', '.join(_FUNCTIONS)}")
  if _FUNCTIONS[kind].setdefault(name, function) is not function:
    raise ValueError(f"the {kind} {name!r} is there already: take another name")


def check_names(algorithm: Algorithm) -> None:
  """Refuses a row that names a function which is not there.

  Raises:
    ValueError: it is neither ours nor registered; the message has the nearest.
  """
  for kind in _FUNCTIONS:
    _registered(kind, getattr(algorithm, kind))


def _registered(kind, name):
  return algorithms_table.lookup(kind, name, _FUNCTIONS[kind])


def aggregate(
  algorithm: Algorithm,
  x_t: chex.Array,
  step_ids: chex.Array,
  table: StepTable,
) -> Pair:
  """Averages a number of each token the way the algorithm's loss is averaged.

  The number and `step_ids` are [B, T], and may hold only some of the steps of
  the table [S]. The function is the one that `aggregation` of the row names.
  """
  return _registered("aggregation", algorithm.aggregation)(
    x_t, step_ids, table.num_tokens, table.trajectory,
    constant=algorithm.constant,
  )  # fmt: skip
