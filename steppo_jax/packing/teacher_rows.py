"""A teacher that knows more than the student, and the rows that it reads.

The teacher is the policy itself. It reads a successful episode of the same task
and then, in the same context, what the student read and wrote (`choose`); or
what the student read, then how the episode ended, then what the student wrote
(`hindsight`; in a chat that is said in the user's turn). Everything stays token
ids.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.batch import TeacherRows
from steppo_jax.packing import forest, options
from steppo_jax.packing import rows as packing_rows

_NOTHING = np.zeros(0, np.int32)


def episode(trajectory: types.Trajectory) -> np.ndarray:
  """Everything read and written in an episode as one context, [n] int32.

  While each prompt extends what came before, that is the last prompt with its
  response. A prompt that was rewritten begins anew behind what came before it.
  """
  paths = [
    forest.Path(
      np.concatenate([step.prompt_ids, step.response_ids]),
      len(step.prompt_ids),
      1 + step.step_index,
      0,
      0,
    )
    for step in trajectory.steps
  ]
  chains = [tree.tokens for tree in forest.chains(paths)]
  return np.concatenate(chains).astype(np.int32)


def choose(
  trajectories: Sequence[types.Trajectory],
) -> list[np.ndarray | None]:
  """The episode that the teacher of each trajectory has seen.

  That of the successful trajectory with the fewest tokens among the others of
  the group; of several, the one whose uid comes first. The order of
  `trajectories` plays no part.

  Args:
    trajectories: Finished episodes; a group has one `group_uid`.

  Returns:
    [N] context of each, None where no other member of the group succeeded.
  """
  of: dict[str, list[tuple[int, str, np.ndarray]]] = {}
  for trajectory in trajectories:
    if trajectory.success:
      ids = episode(trajectory)
      members = of.setdefault(trajectory.steps[0].group_uid, [])
      members.append((len(ids), trajectory.uid, ids))
  best = {
    group: sorted(members, key=lambda x: x[:2])[:2]
    for group, members in of.items()
  }
  found = []
  for trajectory in trajectories:
    members = best.get(trajectory.steps[0].group_uid, [])
    others = (ids for _, uid, ids in members if uid != trajectory.uid)
    found.append(next(others, None))
  return found


def with_context(
  trajectory: types.Trajectory, context: np.ndarray
) -> types.Trajectory:
  """The trajectory with `context` before every prompt."""
  steps = [
    dataclasses.replace(
      step, prompt_ids=np.concatenate([context, step.prompt_ids])
    )
    for step in trajectory.steps
  ]
  return _ended(trajectory, steps)


class Hints(NamedTuple):
  """Token ids of what a teacher is told of an episode behind its prompts.

  Attributes:
    succeeded: That it succeeded.
    failed: That it failed.
    peer: That an episode which succeeded follows.
    end: What stands behind all of it, such as the end of a turn.
    generation: How every prompt ends where that has to stay behind what is
      told: with the end of the user's turn and the beginning of an answer, in
      a chat. Empty for none.
  """

  succeeded: np.ndarray
  failed: np.ndarray
  peer: np.ndarray
  end: np.ndarray
  generation: np.ndarray = _NOTHING


def hindsight(
  trajectories: Sequence[types.Trajectory], hints: Hints
) -> list[np.ndarray]:
  """What the teacher of each trajectory is told behind every prompt.

  Whether the episode succeeded; and, if it failed where another of its group
  succeeded, the episode of the first that did, by its uid.

  Args:
    trajectories: Finished episodes; a group has one `group_uid`.
    hints: How that is said.

  Returns:
    [N] token ids of each.
  """
  first: dict[str, types.Trajectory] = {}
  for one in sorted(trajectories, key=lambda t: (len(t.uid), t.uid)):
    if one.success:
      first.setdefault(one.steps[0].group_uid, one)
  told = []
  for one in trajectories:
    parts = [hints.succeeded if one.success else hints.failed]
    peer = first.get(one.steps[0].group_uid)
    if not one.success and peer is not None:
      parts += [hints.peer, episode(peer)]
    told.append(np.concatenate([*parts, hints.end]).astype(np.int32))
  return told


def make_hints(
  tokenizer: types.Tokenizer, generation_ids: Sequence[int] = ()
) -> Hints:
  """The hints in words of ours: the published wording is not ours to copy.

  Args:
    tokenizer: Encodes them.
    generation_ids: How every prompt ends in a chat; see `Hints`. What is told
      then stands in the user's turn, and has no end of its own.
  """
  generation = np.array(generation_ids, np.int32)
  chat = len(generation) > 0
  lead = "\n" if chat else ""
  end = () if chat else (tokenizer.end_of_turn_id,)
  return Hints(
    *map(tokenizer.encode, (
      f"{lead}Later it turned out: this episode succeeded.",
      f"{lead}Later it turned out: this episode failed.",
      " One that succeeded: ",
    )),
    np.array(end, np.int32),
    generation,
  )  # fmt: skip


def with_suffix(
  trajectory: types.Trajectory,
  suffix: np.ndarray,
  generation: np.ndarray = _NOTHING,
) -> types.Trajectory:
  """The trajectory with `suffix` between every prompt and its response.

  Args:
    trajectory: One episode.
    suffix: [n] int32.
    generation: [g] int32, how every prompt ends; the suffix goes before it.

  Raises:
    ValueError: a prompt ends otherwise.
  """
  steps = []
  for step in trajectory.steps:
    size = len(step.prompt_ids) - len(generation)
    read, end = step.prompt_ids[:size], step.prompt_ids[size:]
    if not np.array_equal(end, generation):
      raise ValueError(
        f"the prompt of step {step.step_index} of {trajectory.uid} does not "
        "end as the chat template begins an answer: take algorithm.teacher=peer"
      )
    ids = np.concatenate([read, suffix, end])
    steps.append(dataclasses.replace(step, prompt_ids=ids))
  return _ended(trajectory, steps)


def _ended(trajectory, steps):
  """It ends without a prompt to bootstrap from: a teacher gives no values."""
  steps[-1] = dataclasses.replace(steps[-1], terminated=True, truncated=False)
  return dataclasses.replace(
    trajectory, steps=tuple(steps), final_prompt_ids=None
  )


def pack(
  trajectories: Sequence[types.Trajectory],
  packed: packing_rows.Packed,
  config: options.PackingConfig,
  *,
  rows_multiple: int,
  pad_id: int,
  rows: int | None = None,
  hints: Hints | None = None,
) -> tuple[TeacherRows, int]:
  """Lays out what the teacher of every step reads, in the layout of the batch.

  Rows are `config.teacher_length` tokens long. A trajectory that does not fit
  with what is told is left out, and counted.

  Args:
    trajectories: Those that were packed, as they were played.
    packed: What `packing.rows.pack` made of them.
    config: The layout that it was made with.
    rows_multiple: The number of rows is a multiple of this.
    pad_id: Token id for unused slots.
    rows: Number of rows R; None picks the bucket that fits.
    hints: Tells the teacher behind every prompt how the episode ended
      (`hindsight`); None shows it a peer's episode before (`choose`).

  Returns:
    The rows, and the number of trajectories that were left out.
  """
  length = config.teacher_length or 2 * config.row_length
  if hints is None:
    told, put = choose(trajectories), with_context
  else:
    told = hindsight(trajectories, hints)
    put = functools.partial(with_suffix, generation=hints.generation)
  told = dict(zip((t.uid for t in trajectories), told, strict=True))
  made, numbers, left_out, number = [], [], 0, 1
  for trajectory in packed.trajectories:
    first, number = number, number + len(trajectory.steps)
    ids = told[trajectory.uid]
    if ids is None:
      continue
    steps = trajectory.steps
    longest = max(len(s.prompt_ids) + len(s.response_ids) for s in steps)
    if len(ids) + longest > length:
      left_out += 1
      continue
    made.append(put(trajectory, ids))
    numbers += range(first, number)
  num_steps = len(packed.table.live)
  found = packing_rows.pack(
    made,
    [0] * len(made),
    dataclasses.replace(
      config, row_length=length, too_long="error", teacher_length=None
    ),
    num_parts=1,
    rows_multiple=rows_multiple,
    pad_id=pad_id,
    num_steps=num_steps,
    rows_per_part=rows,
  )
  # The steps of the batch that the steps here are, in their order.
  of = np.zeros(num_steps, np.int32)
  of[1 : 1 + len(numbers)] = numbers
  ids = of[found.tokens.step_ids]
  covered = np.zeros(num_steps, bool)
  covered[numbers] = True
  here, there = (
    _starts(ids, num_steps),
    _starts(packed.tokens.step_ids, num_steps),
  )
  shift = np.where(covered, here - there, 0).astype(np.int32)
  tokens = found.tokens.replace(step_ids=ids)
  return TeacherRows(tokens, found.rows_used, shift, covered), left_out


def _starts(step_ids: np.ndarray, num_steps: int) -> np.ndarray:
  """[S] flat index of the first action token of each step, 0 without any.

  The tokens of a response lie side by side in every layout.
  """
  starts = np.zeros(num_steps, np.int64)
  found, first = np.unique(step_ids, return_index=True)
  starts[found] = first
  starts[0] = 0
  return starts
