"""Step records to device batches: rows, packed rows, the step table."""

import dataclasses
import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.batch import StepTable, TokenBatch
from steppo_jax.packing import checks, forest
from steppo_jax.packing.options import PackingConfig


class Packed(NamedTuple):
  """A batch on the host, as NumPy arrays.

  Attributes:
    tokens: [M, R, T] rows of every part; whole trajectories lie in one part.
    table: [S] steps; `boundary` and `bootstrap_at` index M * R * T slots.
    rows_used: [M] int32 number of rows in use in every part.
    unique_tokens: Number of stored tokens.
    row_tokens: Number of tokens that one row a step would store, and one for
      the prompt after a truncated episode.
    cut: Number of trajectories that were cut, or left out, to fit a row.
    trajectories: What lies in it, after cutting, in the order of its steps.
  """

  tokens: TokenBatch
  table: StepTable
  rows_used: np.ndarray
  unique_tokens: int
  row_tokens: int
  cut: int
  trajectories: tuple[types.Trajectory, ...]


def digest(packed: Packed) -> str:
  """Tells batches apart, by their shapes and everything in them."""
  found = hashlib.blake2b(packed.rows_used.tobytes(), digest_size=16)
  for part in (packed.tokens, packed.table):
    for field in dataclasses.fields(part):
      array = getattr(part, field.name)
      if array is None:
        continue
      found.update(f"{field.name} {array.dtype}{array.shape}".encode())
      found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()


def bucket(count: int, *, smallest: int) -> int:
  """Rounds up to the next of smallest * {1, 1.5, 2, 3, 4, 6, 8, ...}."""
  size = smallest
  while size < count:
    if size + size // 2 >= count and size > 1:
      return size + size // 2
    size *= 2
  return size


def _paths(
  trajectory: types.Trajectory, number: int, first_step: int
) -> list[forest.Path]:
  """The steps of a trajectory, and the prompt after a truncated one."""
  paths = [
    forest.Path(
      np.concatenate([step.prompt_ids, step.response_ids]),
      len(step.prompt_ids),
      first_step + offset,
      0,
      number,
    )
    for offset, step in enumerate(trajectory.steps)
  ]
  final = trajectory.final_prompt_ids
  if final is not None:
    last = paths[-1].step
    paths.append(forest.Path(np.asarray(final), len(final), 0, last, number))
  return paths


def _trees(
  trajectories: Sequence[types.Trajectory],
  part: Sequence[int],
  config: PackingConfig,
  num_parts: int,
) -> list[list[forest.Tree]]:
  """The trees of every part; those of the layout "tree" span a group."""
  bundles: dict[tuple[int, object], list[forest.Path]] = {}
  first = 1
  for number, (trajectory, where) in enumerate(
    zip(trajectories, part, strict=True)
  ):
    grouped = config.layout == "tree"
    key = trajectory.steps[0].group_uid if grouped else number
    paths = _paths(trajectory, number, first)
    longest = max(len(path.ids) for path in paths)
    if longest > config.row_length:
      raise ValueError(
        f"trajectory {trajectory.uid} has a step of {longest} tokens, which "
        f"does not fit row_length={config.row_length}: raise "
        "packing.row_length, or set packing.too_long=truncate"
      )
    bundles.setdefault((where, key), []).extend(paths)
    first += len(trajectory.steps)
  trees: list[list[forest.Tree]] = [[] for _ in range(num_parts)]
  for (where, _), paths in bundles.items():
    if config.layout == "tree":
      trees[where] += forest.tries(paths, config.row_length)
    elif config.layout == "packed":
      trees[where] += forest.chains(paths)
    else:
      trees[where] += forest.alone(paths)
  return trees


def first_fit(lengths: Sequence[int], capacity: int) -> list[tuple[int, int]]:
  """First-fit decreasing: (row, column) of every item.

  Args:
    lengths: Tokens of each item, at most `capacity`.
    capacity: Tokens of a row.
  """
  order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
  free = np.full(len(lengths), capacity)
  place = [(0, 0)] * len(lengths)
  used = 0
  for i in order:
    fits = free[: used + 1] >= lengths[i]
    row = int(fits.argmax())
    place[i] = (row, capacity - int(free[row]))
    free[row] -= lengths[i]
    used = max(used, row + 1) if row == used else used
  return place


def _place(
  trees: list[forest.Tree], config: PackingConfig
) -> tuple[list[tuple[int, int]], int]:
  """Gives every tree of one part its row and column; counts the rows."""
  if config.layout == "rows":
    return [(row, 0) for row in range(len(trees))], len(trees)
  place = first_fit([len(t.tokens) for t in trees], config.row_length)
  return place, 1 + max((row for row, _ in place), default=-1)


def _numbers(labels: Sequence[Hashable]) -> np.ndarray:
  """Labels to 0, 1, 2, ... in order of first appearance."""
  known: dict[Hashable, int] = {}
  return np.array([known.setdefault(x, len(known)) for x in labels], np.int32)


def _state(index: int, step: types.Step) -> tuple[str, str | int]:
  """What names the state of a step; one without an anchor has none in common.

  A service that knows of no anchors says nothing, which is not to say that all
  of its states are the same.
  """
  return step.group_uid, step.anchor_obs or index


def _table(
  trajectories: Sequence[types.Trajectory], num_steps: int
) -> dict[str, np.ndarray]:
  """The columns of the step table that do not depend on the placement."""
  steps = [step for t in trajectories for step in t.steps]
  counts = np.array([len(t.steps) for t in trajectories], np.int32)
  groups = _numbers([t.steps[0].group_uid for t in trajectories])
  if len(steps) >= num_steps:
    raise ValueError(f"{len(steps)} steps do not fit num_steps={num_steps}")
  columns = {
    "live": np.ones(len(steps), bool),
    "reward": np.array([s.reward for s in steps], np.float32),
    "num_tokens": np.array(
      [np.count_nonzero(s.response_mask) for s in steps], np.int32
    ),
    "last": np.array([s.terminated or s.truncated for s in steps], bool),
    "truncated": np.array([s.truncated for s in steps], bool),
    "trajectory": np.repeat(np.arange(len(counts)), counts).astype(np.int32),
    "group": np.repeat(groups, counts).astype(np.int32),
    "anchor": _numbers([_state(i, step) for i, step in enumerate(steps)]),
    "success": np.repeat([t.success for t in trajectories], counts),
    "version": np.array([s.policy_version for s in steps], np.int32),
    "boundary": np.zeros(len(steps), np.int32),
    "bootstrap_at": np.zeros(len(steps), np.int32),
  }
  # Slot 0 is the null step and the slots behind the last one are unused.
  pad = (1, num_steps - 1 - len(steps))
  columns = {name: np.pad(x, pad) for name, x in columns.items()}
  columns["last"] |= ~columns["live"]
  return columns


def step_table(
  trajectories: Sequence[types.Trajectory], *, num_steps: int
) -> StepTable:
  """The steps that `pack` makes of trajectories, without their tokens.

  Args:
    trajectories: N finished episodes without errors; groups are numbered in
      their order.
    num_steps: Length S of the step axis, slot 0 included.

  Returns:
    Steps [S], in which `boundary` and `bootstrap_at` are 0: there are no rows.

  Raises:
    ValueError: a record cannot be trained on, or the steps do not fit.
  """
  checks.validate(trajectories)
  return StepTable(**_table(trajectories, num_steps))


def _cut(trajectories, part, row_length: int):
  """What fits rows of a length, and the number of steps that do not."""
  kept, cut = checks.fit(trajectories, row_length)
  part = [p for p, t in zip(part, kept, strict=True) if t is not None]
  if trajectories and not part:
    raise ValueError(
      f"no first step of {len(kept)} trajectories fits row_length="
      f"{row_length}: raise packing.row_length"
    )
  return [t for t in kept if t is not None], part, cut


def pack(
  trajectories: Sequence[types.Trajectory],
  part: Sequence[int],
  config: PackingConfig,
  *,
  num_parts: int,
  rows_multiple: int,
  pad_id: int,
  vocab_size: int | None = None,
  num_steps: int | None = None,
  rows_per_part: int | None = None,
  reasoning: bool = False,
) -> Packed:
  """Lays trajectories out in rows; slot 0 of the step axis is the null step.

  Args:
    trajectories: N finished episodes without errors.
    part: [N] part (mini-batch) that each trajectory belongs to.
    config: The layout.
    num_parts: M, the number of parts.
    rows_multiple: The number of rows of a part is a multiple of this.
    pad_id: Token id for unused slots.
    vocab_size: Ids that the model knows, above which none may be; None where
      it is not known.
    num_steps: Length S of the step axis, slot 0 included; None picks the
      bucket that fits.
    rows_per_part: Rows R of each part; None picks the bucket that fits.
    reasoning: Whether the batch tells thoughts from actions, which every step
      then has to know.

  Returns:
    The batch. Under "truncate" trajectories that no step is left of are not in
    it; should that be all of them, it is an error.

  Raises:
    ValueError: a record cannot be trained on, or does not fit.
  """
  checks.validate(trajectories, vocab_size=vocab_size)
  if reasoning:
    checks.told_thoughts(trajectories)
  cut = 0
  if config.too_long == "truncate":
    trajectories, part, cut = _cut(trajectories, part, config.row_length)
  steps = [step for t in trajectories for step in t.steps]
  finals = [t.final_prompt_ids for t in trajectories]
  num_steps = num_steps or bucket(len(steps) + 1, smallest=64)
  columns = _table(trajectories, num_steps)
  trees = _trees(trajectories, part, config, num_parts)
  placed = [_place(group, config) for group in trees]
  rows_used = np.array([rows for _, rows in placed], np.int32)
  needed = int(rows_used.max(initial=1))
  rows = rows_per_part or bucket(needed, smallest=rows_multiple)
  rows = -(-rows // rows_multiple) * rows_multiple
  if needed > rows:
    raise ValueError(f"{needed} rows do not fit rows_per_part={rows_per_part}")
  flat = [
    (tree, m * rows + row, start)
    for m, (group, (place, _)) in enumerate(zip(trees, placed, strict=True))
    for tree, (row, start) in zip(group, place, strict=True)
  ]
  shape = (num_parts * rows, config.row_length)
  tokens = _fill(flat, steps, columns, shape, pad_id, reasoning)
  stacked = {
    name: x.reshape(num_parts, rows, config.row_length)
    for name, x in tokens.items()
  }
  return Packed(
    TokenBatch(**stacked),
    StepTable(**columns),
    rows_used,
    sum(len(tree.tokens) for tree, _, _ in flat),
    sum(len(s.prompt_ids) + len(s.response_ids) for s in steps)
    + sum(len(final) for final in finals if final is not None),
    cut,
    tuple(trajectories),
  )


def _fill(flat, steps, columns, shape, pad_id, reasoning):
  """Writes every (tree, row, column); returns the token arrays."""
  column = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  out = {
    "tokens": np.full(shape, pad_id, np.int32),
    "positions": np.zeros(shape, np.int32),
    "parent": column.copy(),
    "subtree_end": column.copy(),
    "step_ids": np.zeros(shape, np.int32),
    "behaviour_logp": np.zeros(shape, np.float32),
  }
  if reasoning:
    out["reasoning"] = np.zeros(shape, bool)
  for tree, row, start in flat:
    where = np.s_[row, start : start + len(tree.tokens)]
    out["tokens"][where] = tree.tokens
    out["positions"][where] = tree.positions
    out["parent"][where] = tree.parent + start
    out["subtree_end"][where] = tree.subtree_end + start
    for number, at in tree.responses:
      step = steps[number - 1]
      at += start
      span = np.s_[row, at : at + len(step.response_ids)]
      out["step_ids"][span] = np.where(step.response_mask, number, 0)
      out["behaviour_logp"][span] = step.behaviour_logp
      if reasoning:
        out["reasoning"][span] = np.logical_and(
          step.reasoning_mask, step.response_mask
        )
    base = row * shape[1] + start
    for number, at in tree.boundaries:
      columns["boundary"][number] = base + at
    for number, at in tree.finals:
      columns["bootstrap_at"][number] = base + at
  return out
