"""The optimizers of policy and critic."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from steppo_jax.learner.options import LearnerConfig


def adamw(
  peak: chex.Numeric,
  warmup: int,
  config: LearnerConfig,
  steps: int,
  *,
  eps_root: float,
) -> optax.GradientTransformation:
  """Clipping, AdamW, a short warm-up and a linear decay over `steps`.

  Args:
    peak: Learning rate at its highest.
    warmup: Steps over which it rises from 0, which is the rate of the first.
    config: The learner's options.
    steps: Length of the run in optimizer steps.
    eps_root: Added under Adam's square root.
  """
  final = peak * config.final_learning_rate
  warmup = min(warmup, steps // 2)
  schedule = optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, max(warmup, 1)),
      optax.linear_schedule(peak, final, max(steps - warmup, 1)),
    ],
    [warmup],
  )
  return optax.chain(
    _clipped(config.max_grad_norm),
    optax.adamw(
      schedule, b2=0.99, eps_root=eps_root, weight_decay=config.weight_decay
    ),
  )


def _clipped(norm: chex.Numeric) -> optax.GradientTransformation:
  """Scales gradients down to a global norm.

  As `optax.clip_by_global_norm`, with a derivative where all of them are 0.
  """

  def update(updates, state, params=None):
    del params
    square = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(updates))
    found = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    small = (square == 0) | (found < norm)
    cut = lambda x: jnp.where(small, x, (x / found.astype(x.dtype)) * norm)
    return jax.tree.map(cut, updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def step(
  optimizer: optax.GradientTransformation,
  grads: chex.ArrayTree,
  state: optax.OptState,
  params: chex.ArrayTree,
) -> tuple[chex.ArrayTree, Any]:
  """Parameters and state after one step of any optimizer.

  Optax counts on implicit promotion, whatever the program around it does.
  """
  with jax.numpy_dtype_promotion("standard"):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state
