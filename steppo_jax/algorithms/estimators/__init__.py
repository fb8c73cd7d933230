"""Credit assignment: from rewards and values to advantages and value targets.

Every estimator has one signature,

    estimator(batch, table, value_bt, extras, *, discount, lambda_, ...)

with a `TokenBatch` [B, T], a `StepTable` [S], the critic's output at every
token `value_bt` [B, T] or None, and `Extras`, arrays that only few methods
read. Further constants of a method follow by keyword. It returns `Advantages`:
on the clock of the method, whitened where the method whitens, 0 wherever there
is no action to credit, and value targets on the clock of the critic if it has
one.
"""

from steppo_jax.algorithms.estimators.critic import step_gae, token_gae, vetta
from steppo_jax.algorithms.estimators.group import (
  dr_grpo,
  gagpo,
  gigpo,
  grpo,
  hgpo,
  reinforce_pp,
  reinforce_pp_baseline,
  rloo,
  sapo_rec,
)
from steppo_jax.algorithms.estimators.inputs import (
  Extras,
  resegment,
  resolve_truncation,
)
from steppo_jax.algorithms.estimators.teacher import agentopsd, serl, stepopsd
from steppo_jax.algorithms.options import BOOTSTRAPS

__all__ = [
  "BOOTSTRAPS",
  "Extras",
  "agentopsd",
  "dr_grpo",
  "gagpo",
  "gigpo",
  "grpo",
  "hgpo",
  "reinforce_pp",
  "reinforce_pp_baseline",
  "resegment",
  "resolve_truncation",
  "rloo",
  "sapo_rec",
  "serl",
  "step_gae",
  "stepopsd",
  "token_gae",
  "vetta",
]
