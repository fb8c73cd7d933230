"""The optimizers of policy and critic."""

import chex
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
    warmup: Steps over which it rises from 0.
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
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      schedule, b2=0.99, eps_root=eps_root, weight_decay=config.weight_decay
    ),
  )
