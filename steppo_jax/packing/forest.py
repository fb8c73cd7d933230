"""Token sequences that share prefixes, as trees in depth-first order.

This module imports no JAX.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steppo_jax import types


class Path(NamedTuple):
  """A prompt and the response to it: one way from a root.

  Attributes:
    ids: [n] int32 prompt and response.
    prompt: Number of prompt tokens.
    step: Number of the step, 0 for a prompt that was not answered.
    final_of: Number of the step that bootstraps from the last token of this
      prompt, 0 for none.
    trajectory: Number of the trajectory.
  """

  ids: np.ndarray
  prompt: int
  step: int
  final_of: int
  trajectory: int


class Tree(NamedTuple):
  """A tree on the host; slots are numbered within it, depth first.

  Attributes:
    tokens: [n] int32 token ids.
    positions: [n] int32 depth, from 0.
    parent: [n] int32 slot that each token continues; a root is its own.
    subtree_end: [n] int32 one past the slot of the last descendant.
    responses: (step, slot of the first response token) of every step.
    boundaries: (step, slot of the last prompt token) of every step.
    finals: (step, slot of the last token of the prompt after it).
  """

  tokens: np.ndarray
  positions: np.ndarray
  parent: np.ndarray
  subtree_end: np.ndarray
  responses: list[tuple[int, int]]
  boundaries: list[tuple[int, int]]
  finals: list[tuple[int, int]]


def alone(paths: Sequence[Path]) -> list[Tree]:
  """One tree a path: nothing is shared, as in the public systems."""
  return [_tree([path], [0]) for path in paths]


def chains(paths: Sequence[Path]) -> list[Tree]:
  """One chain for as long as each prompt extends the path before it.

  Args:
    paths: Of one trajectory, in the order of its steps.
  """
  trees, start, shared = [], 0, [0]
  for i in range(1, len(paths)):
    before, here = paths[i - 1].ids, paths[i]
    n = len(before)
    extends = here.prompt >= n and np.array_equal(here.ids[:n], before)
    if not extends:
      trees.append(_tree(paths[start:i], shared))
      start, shared = i, []
    shared.append(n if extends else 0)
  return [*trees, _tree(paths[start:], shared)] if paths else []


def tries(paths: Sequence[Path], capacity: int) -> list[Tree]:
  """Every common prefix once, within trajectories and across them.

  A response gets tokens of its own, which later prompts of its trajectory
  continue; prompts of other trajectories are merged with prompts only. So each
  sampled token belongs to one step, and is trained once.

  Args:
    paths: Of one or more trajectories with a common task, in order.
    capacity: Most tokens of a tree. Trajectories that do not fit together get
      trees of their own; one that does not fit alone is cut into trees that
      repeat the prefix at the cut.

  Source: the tree of decision 2 in docs/design.md.
  """
  of: dict[int, list[Path]] = {}
  for path in paths:
    of.setdefault(path.trajectory, []).append(path)
  trees: list[Tree] = []
  members: list[Path] = []
  for own in of.values():
    together = [*members, *own]
    if members and _size(together) > capacity:
      trees += _cut_tries(members, capacity)
      together = own
    members = together
  return [*trees, *_cut_tries(members, capacity)]


def _size(paths: Sequence[Path]) -> int:
  """Tokens of the trie of some paths."""
  return sum(len(p.ids) for p in paths) - sum(_depth_first(paths)[1])


def _cut_tries(paths: Sequence[Path], capacity: int) -> list[Tree]:
  """The trie of some paths, cut before the first one that does not fit."""
  order, shared = _depth_first(paths)
  trees: list[Tree] = []
  members: list[Path] = []
  counts: list[int] = []
  size = 0
  for index, same in zip(order, shared, strict=True):
    path = paths[index]
    if members and (not same or size + len(path.ids) - same > capacity):
      trees.append(_tree(members, counts))
      members, counts, size = [], [], 0
    counts.append(same if members else 0)
    members.append(path)
    size += len(path.ids) - counts[-1]
  return [*trees, _tree(members, counts)] if members else trees


def _tree(paths: Sequence[Path], shared: Sequence[int]) -> Tree:
  """The tree of paths of which each shares `shared` tokens with the last."""
  size = sum(len(p.ids) for p in paths) - sum(shared)
  tokens, positions, parent = np.zeros((3, size), np.int32)
  end = np.full(size, size, np.int32)
  # Slot of the token at each depth of the path that is being written.
  slot = np.zeros(max(len(p.ids) for p in paths), np.int32)
  responses, boundaries, finals = [], [], []
  at = depth = 0
  for path, same in zip(paths, shared, strict=True):
    n = len(path.ids)
    fresh = np.arange(at, at + n - same, dtype=np.int32)
    end[slot[same:depth]] = at
    slot[same:n] = fresh
    tokens[fresh] = path.ids[same:]
    positions[fresh] = np.arange(same, n)
    if len(fresh):
      parent[fresh[0]] = slot[same - 1] if same else at
      parent[fresh[1:]] = fresh[:-1]
    if path.step:
      responses.append((path.step, at + path.prompt - same))
      boundaries.append((path.step, int(slot[path.prompt - 1])))
    if path.final_of:
      finals.append((path.final_of, int(slot[n - 1])))
    at, depth = at + len(fresh), n
  return Tree(tokens, positions, parent, end, responses, boundaries, finals)


def _depth_first(paths: Sequence[Path]) -> tuple[list[int], list[int]]:
  """Order in which paths are written, and tokens shared with the one before.

  Sorted by their tokens, paths with a common prefix are neighbours, and the
  longest prefix that any earlier path has is the neighbour's.
  """
  of: dict[int, list[int]] = {}
  for index, path in enumerate(paths):
    of.setdefault(path.trajectory, []).append(index)
  keys: list[np.ndarray] = [path.ids for path in paths]
  if len(of) > 1:
    for number, members in enumerate(of.values(), 1):
      own = _first_owned([paths[i] for i in members])
      for i, start in zip(members, own, strict=True):
        key = paths[i].ids.astype(np.int64)
        # Behind a sampled token, tokens are equal within the trajectory only.
        key[start:] += number << 32
        keys[i] = key
  order, common = _sorted(keys)
  # A response is never merged into what another path holds already.
  shared = [
    min(same, paths[index].prompt)
    for index, same in zip(order, common, strict=True)
  ]
  return order, shared


def _first_owned(paths: Sequence[Path]) -> list[int]:
  """Depth of the first token of each path that its trajectory sampled."""
  order, common = _sorted([path.ids for path in paths])
  first = np.array([paths[i].prompt for i in order], np.int64)
  own = first.copy()
  for i in range(len(order)):
    # Tokens that the paths behind share with this one; symmetric.
    same = np.minimum.accumulate(np.array(common[i + 1 :], np.int64))
    later = slice(i + 1, None)
    reached = np.where(same > first[later], first[later], own[i])
    own[later] = np.where(
      same > first[i], np.minimum(first[i], own[later]), own[later]
    )
    own[i] = reached.min(initial=own[i])
  result = np.zeros(len(paths), np.int64)
  result[order] = own
  return result.tolist()


def _sorted(keys: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
  """Order by content, and length of the prefix common with the one before."""
  # Big-endian bytes of numbers that are not negative sort as the numbers do.
  texts = [key.astype(key.dtype.newbyteorder(">")).tobytes() for key in keys]
  order = sorted(range(len(keys)), key=texts.__getitem__)
  common = [0]
  for a, b in itertools.pairwise(order):
    common.append(types.common_prefix(keys[a], keys[b]))
  return order, common[: len(order)]


def check_rows(
  parent: np.ndarray,
  subtree_end: np.ndarray,
  positions: np.ndarray,
  step_ids: np.ndarray,
) -> None:
  """Refuses rows that are no forest in depth-first order.

  This package's packing makes none; another's might.

  Args:
    parent: [..., T] int32; see `batch.TokenBatch` for all four.
    subtree_end: [..., T] int32.
    positions: [..., T] int32.
    step_ids: [..., T] int32.

  Raises:
    ValueError: a token that is its own ancestor or lies before its parent, a
      subtree that crosses another, a depth that differs from the number of
      ancestors, an action on an unused slot, or a step in two rows. The first
      such token is named by row and column.
  """
  length = parent.shape[-1]
  parent, subtree_end, positions, step_ids = (
    np.reshape(x, (-1, length))
    for x in (parent, subtree_end, positions, step_ids)
  )
  column = np.arange(length)
  used = subtree_end > column
  root = (parent < 0) | (parent == column)
  above = np.clip(np.where(root, column, parent), 0, length - 1)
  around = np.take_along_axis(subtree_end, above, axis=1)
  # Tokens seen from a slot: those that began, less those whose subtree ended.
  row = np.broadcast_to(np.arange(len(parent))[:, None], parent.shape)
  inside = used & (subtree_end <= length)
  ends = (row * (length + 1) + subtree_end)[inside]
  ended = np.bincount(ends, minlength=len(parent) * (length + 1))
  ended = np.cumsum(ended.reshape(-1, length + 1), axis=1)[:, :length]
  seen = np.cumsum(used, axis=1) - ended
  for wrong, what in (
    (used & ~root & (parent > column), "continues a later token: a cycle"),
    (used & (subtree_end > length), "has a subtree past the end of the row"),
    (
      used & ~root & ((around < subtree_end) | (around <= column)),
      "is not inside the subtree of its parent",
    ),
    (used & root & (positions != 0), "is a root and not at position 0"),
    (
      used
      & ~root
      & (positions != np.take_along_axis(positions, above, axis=1) + 1),
      "is not one position behind its parent",
    ),
    (used & (seen != positions + 1), "sees other tokens than its ancestors"),
    (~used & (step_ids > 0), "is unused and has a step"),
  ):
    if wrong.any():
      line, slot = np.argwhere(wrong)[0]
      raise ValueError(f"row {line}, column {slot}: the token {what}")
  action = step_ids > 0
  first, last = np.full((2, step_ids.max(initial=0) + 1), len(parent))
  np.minimum.at(first, step_ids[action], row[action])
  np.minimum.at(last, step_ids[action], -row[action])
  split = np.flatnonzero((first < len(parent)) & (first != -last))
  if len(split):
    raise ValueError(f"step {split[0]} lies in more than one row")
