"""The episodes of a task as the tree of prefixes that the learner packs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steppo_jax import types
from steppo_jax.packing import forest
from steppo_jax.viewer import episode, runs

# Episodes of a group that are drawn.
MOST = 64


def group(
  run: runs.Run, task: str, update: int | None, split: str
) -> dict[str, Any]:
  """The episodes that an update played of a task, and their tree.

  Args:
    run: The run.
    task: Its uid.
    update: Of the episodes; None for those of which nobody says it.
    split: Of the episodes.

  Returns:
    `episodes`, `layout` of the run's rows, `tree` as `nodes` of tokens that
    belong together, and the numbers of tokens: `rows` (a row for each step),
    `packed` (each episode once) and `tree`.

  Raises:
    LookupError: there are none.
  """
  rows = run.index.query(
    "SELECT id, uid, success, cause, reward, steps, version FROM episodes "
    "WHERE task = ? AND at IS ? AND split = ? AND NOT hidden ORDER BY id "
    "LIMIT ?",
    task, update, split, MOST,
  )  # fmt: skip
  if not rows:
    raise LookupError(f"no episode of task {task} in update {update}")
  names = ("id", "uid", "success", "cause", "reward", "steps", "version")
  told = [dict(zip(names, row, strict=True)) for row in rows]
  found = [episode.read(run, one["id"]) for one in told]
  packing = run.options().get("packing")
  packing = packing if isinstance(packing, dict) else {}
  # Failed episodes are not trained on; they are listed and not packed.
  whole = [i for i, t in enumerate(found) if t.error is None and t.steps]
  made = _tree([found[i] for i in whole], packing.get("row_length"))
  for node in made["nodes"]:
    node["members"] = [whole[i] for i in node["members"]]
    ids = node.pop("ids")
    shown = run.pieces.shown(ids)
    node |= {
      "tokens": len(ids), "texts": shown.texts, "controls": shown.controls
    }  # fmt: skip
  return {
    "task": types.task_to_json(found[0].task),
    "episodes": told,
    "at": update,
    "split": split,
    "layout": packing.get("layout"),
    "without_text": run.without_text,
    **made,
  }


def _paths(trajectories: Sequence[types.Trajectory]) -> list[forest.Path]:
  """All prompts with what was answered, as the learner packs them."""
  paths, step = [], 0
  for number, one in enumerate(trajectories):
    for of in one.steps:
      step += 1
      ids = np.concatenate([of.prompt_ids, of.response_ids]).astype(np.int32)
      paths.append(forest.Path(ids, len(of.prompt_ids), step, 0, number))
    final = one.final_prompt_ids
    if final is not None:
      paths.append(
        forest.Path(np.asarray(final, np.int32), len(final), 0, step, number)
      )
  return paths


def _tree(
  trajectories: Sequence[types.Trajectory], row_length: int | None
) -> dict[str, Any]:
  paths = _paths(trajectories)
  if not paths:
    return {"nodes": [], "counts": {"rows": 0, "packed": 0, "tree": 0}}
  longest = max(len(path.ids) for path in paths)
  capacity = max(longest, int(row_length or 1 << 30))
  trees = forest.tries(paths, capacity)
  alone: dict[int, list[forest.Path]] = {}
  for path in paths:
    alone.setdefault(path.trajectory, []).append(path)
  chains = [tree for own in alone.values() for tree in forest.chains(own)]
  of_step = _steps(trajectories)
  nodes: list[dict[str, Any]] = []
  for number, tree in enumerate(trees):
    _nodes(tree, number, of_step, nodes)
  return {
    "nodes": nodes,
    "counts": {
      "rows": sum(len(path.ids) for path in paths),
      "packed": sum(len(tree.tokens) for tree in chains),
      "tree": sum(len(tree.tokens) for tree in trees),
    },
  }


def _steps(trajectories) -> list[tuple[int, int, int]]:
  """Trajectory, number within it and length of the response, by step."""
  return [(0, 0, 0)] + [
    (number, index, len(step.response_ids))
    for number, one in enumerate(trajectories)
    for index, step in enumerate(one.steps)
  ]


def _nodes(tree: forest.Tree, number: int, of_step, nodes) -> None:
  """Cuts a tree into runs of tokens that one and the same episodes go through.

  A run ends where the tree branches, and where a response begins or ends.
  """
  size = len(tree.tokens)
  through: list[set[int]] = [set() for _ in range(size)]
  step_of = np.zeros(size, np.int64)
  ends = [(step, at) for step, at in tree.boundaries]
  for step, at in tree.responses:
    length = of_step[step][2]
    step_of[at : at + length] = step
    ends.append((step, at + length - 1 if length else -1))
  ends += tree.finals
  for step, at in ends:
    if at >= 0:
      _mark(tree, through, at, of_step[step][0])
  place = np.zeros(size, np.int64)
  for slot in range(size):
    above = int(tree.parent[slot])
    joins = (
      slot > 0
      and above == slot - 1
      and through[slot] == through[above]
      and step_of[slot] == step_of[above]
    )
    if joins:
      place[slot] = place[above]
      nodes[place[slot]]["ids"].append(int(tree.tokens[slot]))
      continue
    place[slot] = len(nodes)
    step = int(step_of[slot])
    nodes.append({
      "tree": number,
      "parent": None if above == slot else int(place[above]),
      "members": sorted(through[slot]),
      "step": of_step[step][1] if step else None,
      "of": of_step[step][0] if step else None,
      "ids": [int(tree.tokens[slot])],
    })  # fmt: skip


def _mark(tree: forest.Tree, through, slot: int, member: int) -> None:
  """Says of a token and all before it that an episode goes through them."""
  while member not in through[slot]:
    through[slot].add(member)
    if tree.parent[slot] == slot:
      return
    slot = int(tree.parent[slot])
