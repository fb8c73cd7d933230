"""Reads ALFWorld's real games as tasks of the household environment.

Two forms are understood: `SPLIT.compact.jsonl.xz` files, one game a line, and
the folders of the ALFWorld release, `json_2.1.1/SPLIT/TASK/TRIAL/` with
`game.tw-pddl`, or with `initial_state.pddl` and `traj_data.json`.
"""

import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from steppo_jax import files, types
from steppo_jax.envs.household import env, pddl

_LOG = logging.getLogger(__name__)
_TASK_TEXT = re.compile(r"Your task is to: (.*?)\"\s*}", re.DOTALL)
_MOST_LISTED = 8


def load_tasks(data_dir: str | pathlib.Path, split: str) -> list[types.Task]:
  """All games of a split, sorted by uid in a release, in file order otherwise.

  Args:
    data_dir: A folder that holds `SPLIT.compact.jsonl.xz`, or one that is,
      or holds, `json_2.1.1`.
    split: "train", "valid_seen" or another split that the folder has.

  Returns:
    Tasks with the compact game and the task's text as payload. `golden_steps`
    is the length of a shortest plan where the data come with one, else None.

  Raises:
    ValueError: the folder or the split is missing, or a record is broken; the
      message names the file, and the line where there is one.
  """
  folder = pathlib.Path(data_dir).expanduser()
  if not folder.is_dir():
    raise ValueError(
      f"data_dir {str(folder)!r} is not a folder; set data_dir to a folder "
      "with json_2.1.1 or SPLIT.compact.jsonl.xz"
    )
  packed = folder / f"{split}.compact.jsonl.xz"
  if packed.is_file():
    return _load_packed(packed)
  for root in (folder / "json_2.1.1", folder):
    if (root / split).is_dir():
      return _load_release(root / split, split)
  raise ValueError(
    f"data_dir {str(folder)!r} has no split {split!r}; it has "
    f"{', '.join(splits(folder)[:_MOST_LISTED]) or 'none'}"
  )


def splits(data_dir: str | pathlib.Path) -> list[str]:
  """The splits that a folder has, sorted.

  Raises:
    ValueError: there is no such folder.
  """
  folder = pathlib.Path(data_dir).expanduser()
  if not folder.is_dir():
    raise ValueError(f"data_dir {str(folder)!r} is not a folder")
  packed = [p.name.split(".")[0] for p in folder.glob("*.compact.jsonl.xz")]
  root = folder / "json_2.1.1"
  root = root if root.is_dir() else folder
  folders = [p.name for p in root.iterdir() if p.is_dir()]
  return sorted({*packed, *folders})


def _load_packed(path):
  tasks = []
  for where, record in files.read_lines(path):
    try:
      tasks.append(task_from_compact(record))
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
  if not tasks:
    raise ValueError(f"{path} holds no game")
  return tasks


def task_from_compact(record: Mapping[str, Any]) -> types.Task:
  """A task from one record of a compact file.

  Raises:
    ValueError: a key is missing or the game is broken.
  """
  if not isinstance(record, Mapping):
    raise ValueError("expected a JSON object")
  missing = {"id", "family", "task", "game"} - set(record)
  if missing:
    raise ValueError(f"the key {min(missing)!r} is missing")
  game = env.Game.from_compact(record["game"], record["task"], dialect="move")
  plan = record.get("plan")
  if plan is not None and any(len(o[3]) > 1 for o in game.world.objects):
    # Things that lie in two places at once allow short cuts, which the plans
    # in the files do not take.
    plan = game.plan()
  return types.Task(
    uid=f"alfworld/{record['id']}",
    env="household",
    family=record["family"],
    payload={"game": record["game"], "task": record["task"]},
    golden_steps=None if plan is None else len(plan),
  )


def _load_release(root, split):
  trials = sorted(p.parent for p in root.glob("*/*/game.tw-pddl"))
  if not trials:
    trials = sorted(p.parent for p in root.glob("*/*/initial_state.pddl"))
  if not trials:
    raise ValueError(
      f"{root} holds no TASK/TRIAL folder with game.tw-pddl or "
      "initial_state.pddl; run alfworld-download or check data_dir"
    )
  tasks, skipped = [], 0
  for trial in trials:
    name = f"{split}/{trial.parent.name}/{trial.name}"
    # ALFWorld's text games have neither tasks with slices nor with movable
    # receptacles; the release has their folders all the same.
    known = "movable" not in name and "Sliced" not in name
    task = load_trial(trial, name) if known else None
    if task is None:
      skipped += 1
    else:
      tasks.append(task)
  if skipped:
    _LOG.info("%s: left out %d games that cannot be won", root, skipped)
  return tasks


def load_trial(
  folder: str | pathlib.Path, name: str | None = None
) -> types.Task | None:
  """One game from its folder of the ALFWorld release.

  Args:
    folder: The folder TASK/TRIAL.
    name: Used in the uid; SPLIT/TASK/TRIAL by default.

  Returns:
    The task, or None if the release marks the game as unsolvable.

  Raises:
    ValueError: a file is missing or broken; the message names it.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f"game folder {str(folder)!r} does not exist")
  name = name or "/".join(folder.resolve().parts[-3:])
  packed, plain = folder / "game.tw-pddl", folder / "initial_state.pddl"
  if packed.is_file():
    data = _read_json(packed)
    missing = {"pddl_problem", "grammar"} - set(data)
    if missing:
      raise ValueError(f"{packed}: the key {min(missing)!r} is missing")
    if data.get("solvable") is False:
      return None
    path, problem = packed, data["pddl_problem"]
    found = _TASK_TEXT.search(data["grammar"])
    if found is None:
      raise ValueError(f"{packed}: the grammar does not state the task")
    text = found.group(1)
  elif plain.is_file():
    path, problem = plain, plain.read_text(encoding="utf-8")
    text = _task_text(folder / "traj_data.json")
  else:
    raise ValueError(
      f"{folder} has neither game.tw-pddl nor initial_state.pddl"
    )
  try:
    game = pddl.parse_problem(problem)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  return types.Task(
    uid=f"alfworld/{name}",
    env="household",
    family=folder.resolve().parent.name.split("-")[0],
    payload={"game": game, "task": text},
  )


def _read_json(path):
  if not path.is_file():
    raise ValueError(f"{path} is missing")
  try:
    data = json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is not valid JSON: {error}") from error
  if not isinstance(data, dict):
    raise ValueError(f"{path}: expected a JSON object")
  return data


_TEMPLATES = {
  "pick_and_place_simple": "put a {o} in {r}.",
  "look_at_obj_in_light": "look at {o} under the {t}.",
  "pick_clean_then_place_in_recep": "put a clean {o} in {r}.",
  "pick_heat_then_place_in_recep": "put a hot {o} in {r}.",
  "pick_cool_then_place_in_recep": "put a cool {o} in {r}.",
  "pick_two_obj_and_place": "put two {o} in {r}.",
}


def _task_text(path):
  """The task from `traj_data.json`, in the first of ALFWorld's two wordings."""
  data = _read_json(path)
  try:
    words, kind = data["pddl_params"], data["task_type"]
    return _TEMPLATES[kind].format(
      o=words["object_target"].lower(),
      r=words["parent_target"].lower(),
      t=words["toggle_target"].lower(),
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path}: no readable pddl_params and task_type ({error!r})"
    ) from error
