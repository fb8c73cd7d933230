"""Step records to device batches: rows, packed rows, the step table."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.batch import StepTable, TokenBatch

Layout = Literal["rows", "packed"]


@dataclasses.dataclass(frozen=True)
class PackingConfig:
  """How trajectories become rows.

  Attributes:
    layout: "packed" stores a trajectory once, while each prompt extends the
      one before; "rows" stores one row a step, as the public systems do.
    row_length: T, the length of a row in tokens, at least the longest episode
      that the rollout allows.
  """

  layout: Layout = "packed"
  row_length: int = 256


class _Chain(NamedTuple):
  """A run of tokens, each continuing the one before, and what it carries."""

  ids: np.ndarray
  step: list[int]  # steps whose response lies in this chain
  boundary: list[int]  # offset of the last prompt token of each step
  bootstrap: int | None  # truncated step whose next prompt ends this chain


class Packed(NamedTuple):
  """A batch on the host, as NumPy arrays.

  Attributes:
    tokens: [M, R, T] rows of every part; whole trajectories lie in one part.
    table: [S] steps; `boundary` and `bootstrap_at` index M * R * T slots.
    rows_used: [M] int32 number of rows in use in every part.
    unique_tokens: Number of stored tokens.
    row_tokens: Number of tokens that one row a step would store.
  """

  tokens: TokenBatch
  table: StepTable
  rows_used: np.ndarray
  unique_tokens: int
  row_tokens: int


def bucket(count: int, *, smallest: int) -> int:
  """Rounds up to the next of smallest * {1, 1.5, 2, 3, 4, 6, 8, ...}."""
  size = smallest
  while size < count:
    if size + size // 2 >= count and size > 1:
      return size + size // 2
    size *= 2
  return size


def _extends(ids: np.ndarray, prefix: np.ndarray) -> bool:
  return len(ids) >= len(prefix) and np.array_equal(ids[: len(prefix)], prefix)


def _chains(
  trajectory: types.Trajectory, first_step: int, layout: Layout
) -> list[_Chain]:
  """Splits a trajectory into chains; `first_step` numbers its first step."""
  chains: list[_Chain] = []
  for offset, step in enumerate(trajectory.steps):
    number = first_step + offset
    ids = np.concatenate([step.prompt_ids, step.response_ids])
    boundary = len(step.prompt_ids) - 1
    last = chains[-1] if chains else None
    if layout == "packed" and last and _extends(step.prompt_ids, last.ids):
      chains[-1] = _Chain(
        ids, [*last.step, number], [*last.boundary, boundary], None
      )
    else:
      chains.append(_Chain(ids, [number], [boundary], None))
  final = trajectory.final_prompt_ids
  if final is not None:
    last = chains[-1]
    if layout == "packed" and _extends(final, last.ids):
      chains[-1] = last._replace(ids=final, bootstrap=number)
    else:
      chains.append(_Chain(final, [], [], number))
  return chains


def validate(trajectories: Sequence[types.Trajectory]) -> None:
  """Refuses records that cannot be trained on.

  Raises:
    ValueError: an episode marked with an error, an empty trajectory or
      prompt, a duplicate trajectory, steps that are missing, doubled or out of
      order, or a reward that is no finite float.
  """
  seen = set()
  for trajectory in trajectories:
    uid = trajectory.uid
    if trajectory.error is not None:
      raise ValueError(
        f"trajectory {uid} ended in an error: count it, do not train on it"
      )
    if not trajectory.steps:
      raise ValueError(f"trajectory {uid} has no steps")
    if uid in seen:
      raise ValueError(f"trajectory {uid} appears twice")
    seen.add(uid)
    _check_order(trajectory)
    for index, step in enumerate(trajectory.steps):
      if len(step.prompt_ids) == 0:
        raise ValueError(f"step {index} of trajectory {uid}: empty prompt")
      lengths = {
        len(step.response_ids),
        len(step.response_mask),
        len(step.rollout_logprobs),
      }
      if len(lengths) > 1:
        raise ValueError(
          f"step {index} of trajectory {uid}: response_ids, response_mask "
          f"and rollout_logprobs have lengths {sorted(lengths)}"
        )
      _check_reward(step.reward, f"step {index} of trajectory {uid}")
      is_last = index == len(trajectory.steps) - 1
      if (step.terminated or step.truncated) != is_last:
        raise ValueError(
          f"step {index} of trajectory {uid}: exactly the last step is "
          "terminated or truncated"
        )
    cut = trajectory.steps[-1].truncated
    if cut and trajectory.final_prompt_ids is None:
      raise ValueError(
        f"trajectory {uid} is truncated and has no final_prompt_ids to "
        "bootstrap from"
      )


def _check_order(trajectory: types.Trajectory) -> None:
  """Steps are numbered 0, 1, 2, ... in order, each once."""
  uid = trajectory.uid
  for step in trajectory.steps:
    if step.trajectory_uid != uid:
      raise ValueError(
        f"step {step.step_index} of trajectory {step.trajectory_uid} lies in "
        f"trajectory {uid}"
      )
  found = [step.step_index for step in trajectory.steps]
  wanted = range(len(found))
  if found == list(wanted):
    return
  doubled = [k for k in sorted(set(found)) if found.count(k) > 1]
  missing = [k for k in wanted if k not in found]
  fault = "they are out of order"
  if doubled:
    fault = f"{doubled} appear more than once"
  elif missing:
    fault = f"{missing} are missing"
  raise ValueError(
    f"steps of trajectory {uid} are numbered {found}: {fault}; they must run "
    "from 0 without a gap"
  )


def _check_reward(reward: float, where: str) -> None:
  # A whole number is more often an id or a count than a reward.
  if not isinstance(reward, float | np.floating):
    raise ValueError(
      f"{where}: reward {reward!r} is of type {type(reward).__name__}: rewards "
      "are floats"
    )
  if not np.isfinite(reward):
    raise ValueError(f"{where}: reward {reward} is not finite")


def _first_fit(lengths: Sequence[int], capacity: int) -> list[tuple[int, int]]:
  """First-fit decreasing: (row, column) of every item."""
  order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
  free: list[int] = []
  place = [(0, 0)] * len(lengths)
  for i in order:
    fits = (row for row, room in enumerate(free) if room >= lengths[i])
    row = next(fits, len(free))
    if row == len(free):
      free.append(capacity)
    place[i] = (row, capacity - free[row])
    free[row] -= lengths[i]
  return place


def _place(
  chains: list[list[_Chain]], config: PackingConfig
) -> tuple[list[tuple[int, int]], int]:
  """Gives every chain of one part its row and column."""
  flat = [chain for group in chains for chain in group]
  lengths = [len(chain.ids) for chain in flat]
  longest = max(lengths, default=0)
  if longest > config.row_length:
    raise ValueError(
      f"a chain of {longest} tokens does not fit row_length="
      f"{config.row_length}: raise packing.row_length"
    )
  if config.layout == "rows":
    return [(row, 0) for row in range(len(flat))], len(flat)
  place = _first_fit(lengths, config.row_length)
  return place, 1 + max((row for row, _ in place), default=-1)


def _numbers(labels: Sequence[str]) -> np.ndarray:
  """Labels to 0, 1, 2, ... in order of first appearance."""
  known: dict[str, int] = {}
  return np.array([known.setdefault(x, len(known)) for x in labels], np.int32)


def _table(
  trajectories: Sequence[types.Trajectory], num_steps: int
) -> dict[str, np.ndarray]:
  """The columns of the step table that do not depend on the placement."""
  steps = [step for t in trajectories for step in t.steps]
  counts = [len(t.steps) for t in trajectories]
  groups = _numbers([t.steps[0].group_uid for t in trajectories])
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
    "anchor": _numbers([f"{s.group_uid}\n{s.anchor_obs}" for s in steps]),
    "source": np.zeros(len(steps), np.int32),
    "boundary": np.zeros(len(steps), np.int32),
    "bootstrap_at": np.zeros(len(steps), np.int32),
  }
  # Slot 0 is the null step and the slots behind the last one are unused.
  pad = (1, num_steps - 1 - len(steps))
  columns = {name: np.pad(x, pad) for name, x in columns.items()}
  columns["last"] |= ~columns["live"]
  return columns


def pack(
  trajectories: Sequence[types.Trajectory],
  part: Sequence[int],
  config: PackingConfig,
  *,
  num_parts: int,
  rows_multiple: int,
  pad_id: int,
  num_steps: int | None = None,
  rows_per_part: int | None = None,
) -> Packed:
  """Lays trajectories out in rows; slot 0 of the step axis is the null step.

  Args:
    trajectories: N finished episodes without errors.
    part: [N] part (mini-batch) that each trajectory belongs to.
    config: The layout.
    num_parts: M, the number of parts.
    rows_multiple: The number of rows of a part is a multiple of this.
    pad_id: Token id for unused slots.
    num_steps: Length S of the step axis, slot 0 included; None picks the
      bucket that fits.
    rows_per_part: Rows R of each part; None picks the bucket that fits.

  Raises:
    ValueError: a record cannot be trained on, or does not fit.
  """
  validate(trajectories)
  total = sum(len(t.steps) for t in trajectories)
  needed = total + 1
  num_steps = num_steps or bucket(needed, smallest=64)
  if needed > num_steps:
    raise ValueError(f"{total} steps do not fit num_steps={num_steps}")
  chains: list[list[_Chain]] = [[] for _ in range(num_parts)]
  first = 1
  for trajectory, where in zip(trajectories, part, strict=True):
    chains[where] += _chains(trajectory, first, config.layout)
    first += len(trajectory.steps)
  placed = [_place([c], config) for c in chains]
  rows_used = np.array([rows for _, rows in placed], np.int32)
  needed = int(rows_used.max(initial=1))
  rows = rows_per_part or bucket(needed, smallest=rows_multiple)
  rows = -(-rows // rows_multiple) * rows_multiple
  if needed > rows:
    raise ValueError(f"{needed} rows do not fit rows_per_part={rows_per_part}")
  columns = _table(trajectories, num_steps)
  shape = (num_parts * rows, config.row_length)
  tokens = _fill(trajectories, chains, placed, columns, shape, rows, pad_id)
  stacked = {
    name: x.reshape(num_parts, rows, config.row_length)
    for name, x in tokens.items()
  }
  return Packed(
    TokenBatch(**stacked),
    StepTable(**columns),
    rows_used,
    sum(len(c.ids) for group in chains for c in group),
    sum(
      len(s.prompt_ids) + len(s.response_ids)
      for t in trajectories
      for s in t.steps
    ),
  )


def _fill(trajectories, chains, placed, columns, shape, rows, pad_id):
  """Writes every chain to its place; returns the token arrays."""
  column = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  out = {
    "tokens": np.full(shape, pad_id, np.int32),
    "positions": np.zeros(shape, np.int32),
    "parent": column.copy(),
    "subtree_end": column.copy(),
    "step_ids": np.zeros(shape, np.int32),
    "behaviour_logp": np.zeros(shape, np.float32),
  }
  steps = [None, *(step for t in trajectories for step in t.steps)]
  for m, (group, (place, _)) in enumerate(zip(chains, placed, strict=True)):
    for chain, (row, start) in zip(group, place, strict=True):
      r, n = m * rows + row, len(chain.ids)
      where = np.s_[r, start : start + n]
      out["tokens"][where] = chain.ids
      out["positions"][where] = np.arange(n)
      out["parent"][where] = np.maximum(np.arange(n) - 1, 0) + start
      out["subtree_end"][where] = start + n
      base = r * shape[1] + start
      for number, boundary in zip(chain.step, chain.boundary, strict=True):
        step = steps[number]
        a = start + boundary + 1
        span = np.s_[r, a : a + len(step.response_ids)]
        out["step_ids"][span] = np.where(step.response_mask, number, 0)
        out["behaviour_logp"][span] = step.rollout_logprobs
        columns["boundary"][number] = base + boundary
      if chain.bootstrap is not None:
        columns["bootstrap_at"][chain.bootstrap] = base + n - 1
  return out
