"""Options of packing: how trajectories become rows of tokens."""

import dataclasses
from typing import Literal

Layout = Literal["rows", "packed", "tree"]


TooLong = Literal["error", "truncate"]


@dataclasses.dataclass(frozen=True)
class PackingConfig:
  """How trajectories become rows.

  Attributes:
    layout: "rows" stores one row a step, as the public systems do. "packed"
      stores a trajectory once while each prompt extends the path before it.
      "tree" stores every common prefix once, also where prompts are rewritten
      and across the trajectories of a task.
    row_length: T, the length of a row in tokens, at least the longest episode
      that the rollout allows.
    too_long: What becomes of a step that is longer than a row: "error", or
      "truncate" cuts its trajectory before it, counted in `Packed.cut`.
    teacher_length: Length of the rows in which a teacher reads a peer's episode
      before the student's tokens, in tokens; None is twice `row_length`, which
      always suffices where prompts are append-only.
  """

  layout: Layout = "packed"
  row_length: int = 256
  too_long: TooLong = "error"
  teacher_length: int | None = None

  def __post_init__(self):
    length = self.teacher_length
    if length is not None and length < self.row_length:
      raise ValueError(
        f"packing.teacher_length={length} is shorter than packing.row_length="
        f"{self.row_length}: no peer's episode fits before such a row"
      )
