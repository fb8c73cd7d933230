"""Which groups an update would learn from: those not all paid alike."""

import chex
import jax.numpy as jnp

from steppo_jax.algorithms import estimators, objective
from steppo_jax.algorithms.estimators import inputs
from steppo_jax.algorithms.table import Algorithm
from steppo_jax.batch import StepTable, TokenBatch
from steppo_jax.learner import modes
from steppo_jax.ops import groups


def unequal_groups(
  table: StepTable, *, algorithm: Algorithm, bootstrap: str
) -> chex.Array:
  """Whether the row's comparison of a group leaves any advantage.

  The row's own estimator is run on the rewards, as the update will run it, so
  that "equal" means what it means there: the return of an episode in GRPO, the
  return from each shared state in GiGPO, the reward of each place in SAPO, all
  of them after truncation and the penalty on long responses. What a teacher or
  a reference would say is left out (a gap of 0).

  Args:
    table: Steps [S] of whole groups, of `packing.rows.step_table`.
    algorithm: Row that compares the episodes of a task and has no critic.
    bootstrap: See `algorithms.estimators.resolve_truncation`.

  Returns:
    [S] bool by the number of the group, True where advantages differ between
    its steps; False where there is no group.
  """
  num = table.live.shape[0]
  table = table.replace(num_tokens=jnp.asarray(table.num_tokens))
  slot_k = jnp.arange(num, dtype=jnp.int32)[None]
  zero_k = jnp.zeros((1, num), jnp.int32)
  gap_k = jnp.zeros((1, num), table.reward.dtype)
  # One row in which each step that acted is a single token.
  batch = TokenBatch(
    tokens=zero_k,
    positions=zero_k,
    parent=slot_k,
    subtree_end=slot_k,
    step_ids=jnp.where(inputs.acted(table), slot_k, 0),
    behaviour_logp=gap_k,
    reasoning=jnp.zeros((1, num), bool),
  )
  batch, table = estimators.resolve_truncation(
    batch, table, bootstrap=bootstrap
  )
  table, _ = modes.pay_for_length(algorithm, table)
  extras = estimators.Extras(teacher_gap=gap_k, reference_gap=gap_k)
  found = objective.advantages(algorithm, batch, table, None, extras)
  return groups.group_spread(
    found.advantage.reshape(-1),
    table.group,
    inputs.acted(table),
    num_groups=num,
  )
