"""Task lists as TFDS datasets, with the files that their tasks need.

An example is one task

    uid, env, family   str
    golden_steps       int, -1 where it is not known
    payload            str, JSON

in the order of its split. Tasks of the published shop, of questions over a
common corpus and of a library of papers need files beside them: the dataset
holds copies, so that it can be moved and nothing else is needed to play it.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from steppo_jax import types
from steppo_jax.datasets import store
from steppo_jax.envs import base
from steppo_jax.envs import tasks as tasks_lib
from steppo_jax.envs.papers import library as papers_library
from steppo_jax.envs.questions import data as questions_data
from steppo_jax.envs.webshop import data as webshop_data

# Files that tasks of an environment refer to, from the folder of real data.
_FILES = {
  "webshop": webshop_data.files,
  "search_qa": questions_data.files,
  "paper_search": papers_library.files,
}
_EVERY = 2**62


class TaskSet(store.Builder):
  """Tasks of one environment, in order, by split."""

  FEATURES: ClassVar = {
    "uid": tfds.features.Text(),
    "env": tfds.features.Text(),
    "family": tfds.features.Text(),
    "golden_steps": np.int32,
    "payload": tfds.features.Text(),
  }


class Facts(NamedTuple):
  """What a prepared task set says of itself.

  Attributes:
    env: The environment's name, as in `env.name`.
    splits: Number of tasks by split.
    train: The split that is trained on.
    files: Names of the files beside the tasks.
  """

  env: str
  splits: Mapping[str, int]
  train: str
  files: Sequence[str]


def prepare(
  env: str,
  output: str | os.PathLike,
  *,
  data_dir: str | os.PathLike | None = None,
  size: str = "small",
  options: Mapping[str, Any] | None = None,
  splits: Sequence[str] = (),
  count: int | None = None,
) -> pathlib.Path:
  """Writes the task lists of an environment, or checks those that are there.

  Args:
    env: A name of `envs.base.ENVS`, or of an installed package.
    output: Folder that holds datasets.
    data_dir: Folder of real tasks; without one they are generated.
    size: Size of generated worlds.
    options: The environment's own options, such as {"by": "index"}.
    splits: Which; all that have a task by default.
    count: Most tasks of a split. Generated ones need it.

  Returns:
    The dataset's folder, for the option `env.task_set`.

  Raises:
    ValueError: an option does not fit, data are missing or broken.
    RuntimeError: the dataset that is there is broken.
  """
  folder = None if data_dir is None else str(data_dir)
  common = {"name": env, "size": size, "data_dir": folder}
  recipe = base.resolve(env, common, dict(options or {})).tasks
  source = recipe.make()
  if data_dir is not None and "data_dir" not in recipe.options:
    raise ValueError(
      f"tasks of {env} are generated and read no folder: leave --data-dir out"
      + ("; the real games are alfworld's" if env == "household" else "")
    )
  if count is not None and count < 1:
    raise ValueError(f"--episodes must be at least 1, got {count}")
  if count is None and data_dir is None:
    raise ValueError(
      f"tasks of {env} are generated without end: say how many of each split "
      "with --episodes, or give --data-dir"
    )
  wanted = splits or getattr(source, "splits", tuple)()
  if not wanted:
    raise ValueError(f"{env} does not list its splits: name them with --split")
  files = []
  if data_dir is not None and env in _FILES:
    files = _FILES[env](data_dir)
  lists = {
    split: _Examples(source.panel(split, count or _EVERY), data_dir)
    for split in wanted
  }
  if not splits:
    lists = {split: of for split, of in lists.items() if of}
  facts = Facts(
    env,
    {split: len(of) for split, of in lists.items()},
    getattr(source, "train", "train"),
    [path.name for path in files],
  )
  name = _name(env, recipe.options, count, lists, files)
  return store.write(
    TaskSet, output, store.Contents(name, lists, facts._asdict(), files)
  )


class _Examples(Sequence):
  """Tasks as examples, made when they are asked for."""

  def __init__(self, tasks, data_dir):
    self.tasks = tasks
    self._folder = None
    if data_dir is not None:
      self._folder = str(pathlib.Path(data_dir).expanduser().resolve())

  def __len__(self):
    return len(self.tasks)

  def __getitem__(self, index):
    task = self.tasks[index]
    # The folder of the dataset takes the place of the source's.
    payload = _moved(task.payload, self._folder, "")
    known = task.golden_steps is not None
    return {
      "uid": task.uid,
      "env": task.env,
      "family": task.family,
      "golden_steps": task.golden_steps if known else -1,
      "payload": json.dumps(payload, ensure_ascii=True),
    }


def _moved(payload, old, new):
  """A payload in which `data_dir` is another folder."""
  if isinstance(payload, Mapping):
    return {
      key: new
      if key == "data_dir" and value == old
      else _moved(value, old, new)
      for key, value in payload.items()
    }
  return payload


def _name(env, options, count, lists, files) -> str:
  """A folder's name that differs where the tasks do."""
  found = hashlib.sha256()
  for split, examples in lists.items():
    found.update(f"{split} {len(examples)}\n".encode())
    for example in examples:
      found.update(json.dumps(example).encode())
  for path in files:
    found.update(f"{path.name} {store.digest(path)}\n".encode())
  words = [env]
  if options.get("data_dir") is None:
    words += [str(options.get("size", "tasks"))]
  else:
    words += ["real"]
  words += [] if count is None else [f"n{count}"]
  return "-".join([*words, found.hexdigest()[:8]])


def describe(folder: str | os.PathLike) -> Facts:
  """What a prepared task set says of itself; the files are not checked.

  Raises:
    ValueError: the folder is not a task set.
  """
  facts = store.facts(folder)
  if set(facts) != set(Facts._fields):
    raise ValueError(f"{folder} is a dataset, but not one of tasks")
  return Facts(**facts)


def load(folder: str | os.PathLike, split: str) -> Sequence[types.Task]:
  """The tasks of a split, read from the disk as they are asked for.

  Raises:
    ValueError: the folder is not a task set, or has no such split.
    RuntimeError: a file is broken.
  """
  describe(folder)
  place = str(pathlib.Path(folder).expanduser().resolve())

  def make(raw):
    golden = int(raw["golden_steps"])
    return types.Task(
      raw["uid"].decode(),
      raw["env"].decode(),
      raw["family"].decode(),
      _moved(json.loads(raw["payload"]), "", place),
      None if golden < 0 else golden,
    )

  return store.read(folder, split, make)


def task_list(folder: str) -> tasks_lib.RecordedTasks:
  """A prepared task set as the tasks of a run.

  Raises:
    ValueError: the folder is not a task set.
  """
  facts = describe(folder)
  return tasks_lib.RecordedTasks(
    lambda split: load(folder, split), facts.train, lambda: tuple(facts.splits)
  )


def recipes(
  folder: str,
  name: str,
  common: Mapping[str, Any],
  own: Mapping[str, Any],
) -> base.Recipes:
  """How an environment and its prepared tasks are made.

  Args:
    folder: The task set.
    name: The environment's name.
    common: See `base.resolve`; the files of the task set take the place of a
      `data_dir` that is None.
    own: See `base.resolve`.

  Raises:
    ValueError: the folder is not a task set, or one of another environment, or
      see `base.resolve`.
  """
  facts = describe(folder)
  if base.row(name).env != base.row(facts.env).env:
    raise ValueError(
      f"env.task_set={folder} holds tasks of {facts.env}, not of {name}: set "
      f"env.name={facts.env}"
    )
  place = common.get("data_dir") or folder
  found = base.resolve(name, {**common, "data_dir": place}, own)
  options = dict(found.env.options)
  if not facts.files and common.get("data_dir") is None:
    options.pop("data_dir", None)
  tasks = base.Recipe("steppo_jax.datasets.tasks:task_list", {"folder": folder})
  return base.Recipes(found.env._replace(options=options), tasks)
