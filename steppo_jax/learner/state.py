"""What an update reads and changes: the batch and the learner's state."""

from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import optax

from steppo_jax.batch import PromptRows, StepTable, TeacherRows, TokenBatch
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.packing import forest
from steppo_jax.packing.rows import Packed


@chex.dataclass(frozen=True)
class LearnerState:
  """Everything an update changes; critic and its optimizer may be None.

  So are `kl_coef`, the weight of the KL, where it stays what the row says, and
  `teacher`, a policy of some updates ago, where nobody learns of it.
  """

  policy: chex.ArrayTree
  policy_optimizer: optax.OptState
  critic: chex.ArrayTree | None
  critic_optimizer: optax.OptState | None
  update: chex.Array
  kl_coef: chex.Array | None = None
  teacher: chex.ArrayTree | None = None


class Batch(NamedTuple):
  """One update's data on the devices; see `packing.rows.Packed`.

  With `teacher` the policy itself, told more, is the teacher. With `prompts` a
  critic of its own, whose values are of steps, reads those rows.
  """

  tokens: TokenBatch  # [M, R, T]
  table: StepTable  # [S]
  rows_used: chex.Array  # [M]
  teacher: TeacherRows | None = None
  prompts: PromptRows | None = None


def put_batch(
  packed: Packed,
  mesh: jax.sharding.Mesh,
  teacher: TeacherRows | None = None,
  prompts: PromptRows | None = None,
) -> Batch:
  """Moves a packed batch to the devices, rows split over them.

  The arrays on the host may be written over afterwards.

  Args:
    packed: The batch on the host.
    mesh: The devices.
    teacher: The rows of its teacher (`packing.teacher_rows.pack`), or None.
    prompts: The rows of its critic (`packing.prompt_rows.pack`), or None.

  Raises:
    ValueError: rows that are no forest; see `packing.forest.check_rows`.
  """
  t = packed.tokens
  forest.check_rows(t.parent, t.subtree_end, t.positions, t.step_ids)
  rows, whole = mesh_lib.by_row(mesh, 1), mesh_lib.replicated(mesh)

  # Some devices read an array where it lies on the host, for as long as they
  # hold it, and all of them may still be reading when the call returns.
  put = lambda tree, where: mesh_lib.put(jax.tree.map(np.array, tree), where)
  if teacher is not None:
    teacher = put(teacher, TeacherRows(rows, whole, whole, whole))
  if prompts is not None:
    prompts = put(prompts, PromptRows(rows, whole, whole, whole))
  return Batch(
    put(packed.tokens, rows),
    put(packed.table, whole),
    put(packed.rows_used, whole),
    teacher,
    prompts,
  )


# What to look at, by the first part of a metric's name; causes come first.
_CAUSES = {
  "batch": "look at the rewards of the environment",
  "reference": "look at the weights that the run began with",
  "teacher": "look at algorithm.teacher",
  "critic": "lower learner.critic_learning_rate",
  "policy": "lower learner.learning_rate, or look at the batch's log-ratios",
}


def check_finite(pairs: dict[str, tuple[Any, Any]], update: int) -> None:
  """Refuses an update of which something is not finite.

  Every loss, gradient, log-probability, value, reward and parameter of an
  update is part of a metric, so that looking at them costs nothing: a NaN or an
  infinity shows in a sum.

  Args:
    pairs: (sum, weight) by name, on the host.
    update: Number of the update, for the error.

  Raises:
    RuntimeError: it names what is not finite, and what to change.
  """
  wrong = [name for name, (total, _) in pairs.items() if not np.isfinite(total)]
  if not wrong:
    return
  order = {cause: at for at, cause in enumerate(_CAUSES)}
  part = lambda name: name.partition("/")[0]
  wrong.sort(key=lambda name: (order[part(name)], name))
  advice = _CAUSES[part(wrong[0])]
  raise RuntimeError(
    f"update {update}: not finite: {', '.join(wrong)}; nothing of this update "
    f"is kept, the last checkpoint is from before it; {advice}"
  )


def split_metrics(found: dict[str, Any]):
  """Separates (sum, weight) pairs from plain numbers."""
  pairs = {k: v for k, v in found.items() if isinstance(v, tuple)}
  plain = {k: v for k, v in found.items() if not isinstance(v, tuple)}
  return pairs, plain
