"""Every operation as a function of one array, and the array."""

import functools

import jax.numpy as jnp
import numpy as np
import reference

from steppo_jax.ops import (
  aggregation,
  groups,
  losses,
  ratios,
  returns,
  segments,
  shaping,
  stats,
)

BATCH = reference.ragged(8)
IDS, LAST, GROUP = BATCH.step_ids, BATCH.last, BATCH.trajectory
LIVE, COUNT = BATCH.live, np.bincount(BATCH.step_ids.ravel(), minlength=9)
COUNT[0] = 0
ACTION = IDS > 0
RNG = np.random.default_rng(0)
X_T = RNG.normal(size=IDS.shape).astype(np.float32)
X_K = RNG.normal(size=9).astype(np.float32)
SUCCESS = np.full(9, 0.4, np.float32)
THOUGHT = ACTION & (RNG.uniform(size=IDS.shape) < 0.5)
INDEX = np.arange(9, dtype=np.int32) % 2

# Name -> function of one float array that is differentiated, and that array.
CASES = {
  "step_sum": (lambda x: segments.step_sum(x, IDS, num_steps=9), X_T),
  "step_mean": (lambda x: segments.step_mean(x, IDS, num_steps=9), X_T),
  "to_tokens": (lambda x: segments.to_tokens(x, IDS), X_K),
  "discounted_returns": (
    lambda x: returns.discounted_returns(x, LAST, X_K, discount=0.9),
    X_K,
  ),
  "step_gae": (
    lambda x: returns.step_gae(X_K, x, LAST, x, discount=0.9, lambda_=0.8),
    X_K,
  ),
  "token_gae": (
    lambda x: returns.token_gae(
      X_K, x, IDS, LAST, X_K, discount=0.9, lambda_=0.8
    ),
    X_T,
  ),
  "whiten": (lambda x: stats.whiten(x, ACTION), X_T),
  "group_zscore": (
    lambda x: groups.group_zscore(
      x, GROUP, LIVE, num_groups=9, eps=1e-6, singleton="raw"
    ),
    X_K,
  ),
  "group_leave_one_out": (
    lambda x: groups.group_leave_one_out(x, GROUP, LIVE, num_groups=9),
    X_K,
  ),
  "pooled_log_ratio": (
    lambda x: ratios.pooled_log_ratio(
      x, IDS, num_steps=9, power=0.5, center=True
    ),
    X_T,
  ),
  "rollout_weight": (
    lambda x: ratios.rollout_weight(
      x, IDS, num_steps=9, kind="tis_step", low=0.5, high=2.0
    ),
    X_T,
  ),
  "clipped_surrogate": (
    lambda x: losses.clipped_surrogate(
      jnp.exp(x), X_T, clip_low=0.2, clip_high=0.3, dual_clip=3.0
    )[0],
    X_T[::-1].copy(),
  ),
  "value_loss": (
    lambda x: losses.value_loss(x, X_T, -X_T, value_clip=0.5)[0],
    X_T[::-1].copy(),
  ),
  "cispo": (
    lambda x: losses.cispo(
      x, jnp.exp(x - X_T), X_T, clip_low=0.2, clip_high=0.3
    )[0],
    X_T[::-1].copy(),
  ),
  "soft_gate": (
    lambda x: losses.soft_gate(jnp.exp(x), X_T, tau=1.05)[0],
    X_T[::-1].copy(),
  ),
  "token_weight": (
    lambda x: shaping.token_weight(X_T, x, IDS, num_steps=9, mix=0.5),
    X_T,
  ),
  "kl_k3": (lambda x: losses.kl_k3(x, X_T), X_T[::-1].copy()),
  "trajectory_step_mean": (
    lambda x: aggregation.trajectory_step_mean(x, IDS, COUNT, GROUP),
    X_T,
  ),
  "belief_filter": (
    lambda x: shaping.belief_filter(
      x, SUCCESS, X_K, LAST, mix=0.5, band=3.0, decay=0.9
    ),
    X_K,
  ),
  "focus_weight": (
    lambda x: shaping.focus_weight(
      x, THOUGHT, ACTION & ~THOUGHT, alpha=0.1, beta=0.5
    ),
    X_T,
  ),
  "equal_step_scale": (
    lambda x: shaping.equal_step_scale(x, IDS, GROUP, num_steps=9, limit=9.0),
    X_T,
  ),
  "group_by_index": (
    lambda x: groups.group_by_index(
      x, GROUP, INDEX, LIVE, num_groups=9, num_indices=2, eps=0.1, divide=True
    ),
    X_K,
  ),
  "turn_and_token_gae": (
    lambda x: returns.turn_and_token_gae(
      X_K,
      X_K,
      x,
      IDS,
      LAST,
      X_K,
      X_K,
      alpha=2.0,
      turn_discount=0.9,
      turn_lambda=0.8,
      token_discount=1.0,
      token_lambda=0.7,
    ),
    X_T,
  ),
}

close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
