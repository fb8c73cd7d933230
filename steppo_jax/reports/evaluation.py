"""What an evaluation found, and how it is written down."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from steppo_jax import types
from steppo_jax.prompts import base as prompt_base
from steppo_jax.reports import panel


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What a policy did on panels of tasks.

  Attributes:
    facts: What was evaluated and how, JSON-able.
    notes: What must be known to compare the numbers with others'.
    trajectories: The episodes, by split.
    tables: Numbers by split, family and name; see `reports.panel.table`.
    lengths: Episodes against golden steps, by split; see
      `reports.panel.by_length`.
  """

  facts: dict[str, Any]
  notes: tuple[str, ...]
  trajectories: dict[str, list[types.Trajectory]]
  tables: dict[str, dict[str, dict[str, panel.Estimate]]]
  lengths: dict[str, list[panel.LengthBin]]

  @property
  def episodes(self) -> list[types.Trajectory]:
    """Those of all splits."""
    return [t for of in self.trajectories.values() for t in of]

  def failures(self) -> dict[str, dict[str, Any]]:
    """How many episodes ended in an error, by its cause, and the first."""
    found: dict[str, dict[str, Any]] = {}
    for trajectory in self.episodes:
      if trajectory.error is not None:
        cause = trajectory.error.partition(":")[0]
        own = found.setdefault(cause, {"count": 0, "first": trajectory.error})
        own["count"] += 1
    return found

  def summary(self) -> dict[str, Any]:
    """Everything but the episodes, JSON-able."""
    return {
      **self.facts,
      "notes": list(self.notes),
      "failures": self.failures(),
      "tables": {
        split: {
          family: {name: number._asdict() for name, number in row.items()}
          for family, row in table.items()
        }
        for split, table in self.tables.items()
      },
      "lengths": {
        split: [
          {
            name: value._asdict()
            if isinstance(value, panel.Estimate)
            else value
            for name, value in length._asdict().items()
          }
          for length in lengths
        ]
        for split, lengths in self.lengths.items()
      },
    }


def notes(env: str, max_steps: int) -> tuple[str, ...]:
  """What must be known to compare numbers of an environment with others'."""
  if env not in ("alfworld", "household"):
    return ()
  return (
    f"Episodes end after {max_steps} steps. StepPO's paper allows 20, most "
    "tables of ALFWorld 50: success at 20 and at 50 steps is not comparable.",
  )


def write_summary(path: str | pathlib.Path, found: Evaluation) -> None:
  """Writes the numbers, and draws the lengths, beside the steps.

  Args:
    path: The file of the steps; its ending becomes ".summary.json" and
      ".length.png".
    found: What to write.
  """
  path = pathlib.Path(path)
  summary = path.with_suffix(".summary.json")
  summary.write_text(json.dumps(found.summary(), indent=1) + "\n")
  lengths = {split: of for split, of in found.lengths.items() if of}
  if lengths:
    panel.draw_lengths(
      path.with_suffix(".length.png"), lengths, found.facts["max_steps"]
    )


def write_steps(
  path: str | pathlib.Path,
  trajectories: Mapping[str, Sequence[types.Trajectory]],
  prompt: prompt_base.Prompt,
) -> None:
  """Writes one JSON line a step, and one for an episode without steps.

  Args:
    path: The file.
    trajectories: Episodes by split.
    prompt: Makes text of token ids.
  """
  every = [(split, t) for split, of in trajectories.items() for t in of]
  with open(path, "w") as file:
    for split, trajectory in every:
      common = {
        "split": split,
        "trajectory": trajectory.uid,
        "task": trajectory.task.uid,
        "family": trajectory.task.family,
        "golden_steps": trajectory.task.golden_steps,
        "success": trajectory.success,
        "scores": dict(trajectory.scores),
        "error": trajectory.error,
        "retried": list(trajectory.retried),
      }
      for step in trajectory.steps:
        line = common | {
          "step": step.step_index,
          "prompt": prompt.tokenizer.decode(step.prompt_ids),
          "action": prompt.action(step.response_ids),
          "reward": step.reward,
          "terminated": step.terminated,
          "truncated": step.truncated,
          **step.metadata,
        }
        file.write(json.dumps(line) + "\n")
      if not trajectory.steps:
        file.write(json.dumps(common) + "\n")
