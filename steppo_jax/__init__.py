"""Step-level reinforcement learning of language-model agents in JAX."""

import importlib

__version__ = "0.1.0"

# Public name -> module. Modules load on first use, so that importing the
# package costs nothing and an environment process never loads JAX.
_PUBLIC = {
  "step_ids_from_mask": "ops.segments",
  "step_sum": "ops.segments",
  "step_mean": "ops.segments",
  "step_count": "ops.segments",
  "to_tokens": "ops.segments",
  "step_boundary": "ops.segments",
  "discounted_returns": "ops.returns",
  "step_gae": "ops.returns",
  "token_gae": "ops.returns",
  "whiten": "ops.stats",
  "group_center": "ops.groups",
  "group_zscore": "ops.groups",
  "group_leave_one_out": "ops.groups",
  "log_ratio": "ops.ratios",
  "pooled_log_ratio": "ops.ratios",
  "pooled_log_ratio_centered": "ops.ratios",
  "rollout_weight": "ops.ratios",
  "clipped_surrogate": "ops.losses",
  "value_loss": "ops.losses",
  "kl_k1": "ops.losses",
  "kl_k2": "ops.losses",
  "kl_k3": "ops.losses",
  "token_mean": "ops.aggregation",
  "step_mean_loss": "ops.aggregation",
  "trajectory_step_mean": "ops.aggregation",
  "trajectory_token_mean": "ops.aggregation",
  "token_sum_over_constant": "ops.aggregation",
  "cispo": "ops.losses",
  "soft_gate": "ops.losses",
  "log_clip": "ops.losses",
  "reweight_band": "ops.shaping",
  "reweight_sigmoid": "ops.shaping",
  "token_weight": "ops.shaping",
  "belief_filter": "ops.shaping",
  "focus_weight": "ops.shaping",
  "equal_step_scale": "ops.shaping",
  "group_by_index": "ops.groups",
  "turn_and_token_gae": "ops.returns",
  "overlong_penalty": "ops.shaping",
  "group_spread": "ops.groups",
  "joint_group": "ops.groups",
  "ALGORITHMS": "algorithms.table",
  "Algorithm": "algorithms.table",
  "register": "algorithms.objective",
  "update": "learner.update",
  "make_parts": "learner.learner",
  "init": "learner.learner",
  "put_batch": "learner.state",
  "Model": "learner.spec",
  "LearnerConfig": "learner.options",
}

# Public modules, whose names are public in turn.
_MODULES = {
  "estimators": "algorithms.estimators",
  "objective": "algorithms.objective",
  "packing": "packing",
  "types": "types",
  "batch": "batch",
}


def __getattr__(name):
  if name in _MODULES:
    return importlib.import_module(f"steppo_jax.{_MODULES[name]}")
  if name not in _PUBLIC:
    raise AttributeError(f"module 'steppo_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(f"steppo_jax.{_PUBLIC[name]}"), name)


def __dir__():
  return sorted([*globals(), *_PUBLIC, *_MODULES])
