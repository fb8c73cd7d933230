"""Demonstrations of generated worlds as a TFDS dataset in RLDS form.

The dataset is made here, from generated tasks and their experts; nothing is
downloaded, and TensorFlow is not imported. An episode is

    uid, family, split, size, task   str
    golden_steps                     int, length of a shortest solution, -1
                                     where it is not known
    steps                            list, one more than there are actions

and a step `observation` and `action` (str), `commands` (list of str: what could
be answered, empty where the environment does not say; in the files as JSON,
since lists of lists need TensorFlow), `reward` (float), `is_first`, `is_last`
and `is_terminal` (bool). The last step holds the final observation and the
action "", as RLDS has it.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from steppo_jax import types
from steppo_jax.datasets import store
from steppo_jax.datasets.options import Demonstrations
from steppo_jax.envs import base, experts

_TEXTS = ("uid", "family", "split", "size", "task")


def _play(options: Demonstrations):
  """Yields (task, how it was demonstrated) of every episode."""
  expert = experts.get(options.env)
  if expert.plan is not None:
    env = make_env(options.env, base.parse_options(options.options))
  for index in range(options.num_episodes):
    task = options.task(index)
    random = np.random.default_rng((options.seed, index))
    if expert.plan is not None:
      actions = expert.plan(task)
      if options.noise:
        actions = expert.spoil(
          task, actions, noise=options.noise, random=random
        )
      yield task, experts.play(task, env, actions, wins=not options.noise)
      continue
    yield (
      task,
      expert.show(
        task,
        detours=options.detours,
        noise=options.noise,
        random=random,
        thoughts=options.thoughts,
      ),
    )


def make_env(name: str, options: Mapping[str, Any]) -> types.Env:
  """An environment with its own options and no penalty."""
  size = next(iter(experts.get(name).worlds.SIZES))
  common = {"name": name, "size": size}
  return base.resolve(name, common, options).env.make()


def _episode(
  options: Demonstrations, index: int, task: types.Task, played: experts.Played
) -> dict[str, Any]:
  last = len(played.actions)
  return {
    "uid": task.uid,
    "family": task.family,
    "split": options.split,
    "size": options.sizes[index % len(options.sizes)],
    "task": task.payload.get(experts.get(options.env).text, task.uid),
    "golden_steps": -1 if task.golden_steps is None else task.golden_steps,
    "steps": [
      {
        "observation": observation,
        "action": played.actions[k] if k < last else "",
        "commands": json.dumps(
          list(played.commands[k]) if played.commands else []
        ),
        "reward": played.rewards[k] if k < last else 0.0,
        "is_first": k == 0,
        "is_last": k == last,
        "is_terminal": k == last,
      }
      for k, observation in enumerate(played.observations)
    ],
  }


class ExpertDemonstrations(tfds.core.GeneratorBasedBuilder):
  """The TFDS builder; `prepare` and `load` are simpler to use."""

  VERSION = tfds.core.Version("1.1.0")

  def __init__(self, *, options: Demonstrations, data_dir: str, progress):
    self._options = options
    self._progress = progress
    self.name = f"{options.env}_demonstrations"
    super().__init__(
      data_dir=data_dir,
      config=tfds.core.BuilderConfig(name=options.name),
      file_format="array_record",
    )

  def _info(self):
    text = tfds.features.Text
    step = {
      "observation": text(),
      "action": text(),
      "commands": text(),
      "reward": np.float32,
      "is_first": np.bool_,
      "is_last": np.bool_,
      "is_terminal": np.bool_,
    }
    features = {name: text() for name in _TEXTS} | {
      "golden_steps": np.int32,
      "steps": tfds.features.Dataset(step),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(features),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {self._options.split: self._generate_examples()}

  def _generate_examples(self):
    for index, played in enumerate(_play(self._options)):
      yield index, _episode(self._options, index, *played)
      self._progress()


def _folder(data_dir: str | os.PathLike, options: Demonstrations):
  version = str(ExpertDemonstrations.VERSION)
  root = pathlib.Path(data_dir).absolute()
  return root / f"{options.env}_demonstrations" / options.name / version


def prepare(
  data_dir: str | os.PathLike, options: Demonstrations
) -> pathlib.Path:
  """Makes the dataset, or checks the one that is there.

  Returns:
    The dataset's folder under `data_dir`.

  Raises:
    ValueError: `data_dir` is a file.
    RuntimeError: the dataset that is there is broken.
  """
  folder = _folder(data_dir, options)
  if pathlib.Path(data_dir).is_file():
    raise ValueError(f"data_dir must be a folder, {data_dir} is a file")
  if (folder / store.DIGESTS).exists():
    store.verify(folder)
    return folder
  if folder.exists():  # A kill came between the data and their digests.
    shutil.rmtree(folder)
  with store.progress("demonstrations", options.num_episodes) as advance:
    ExpertDemonstrations(
      options=options,
      data_dir=str(pathlib.Path(data_dir).absolute()),
      progress=advance,
    ).download_and_prepare()
  store.seal(folder)
  return folder


def _as_python(raw: dict[str, Any]) -> dict[str, Any]:
  """An episode as Python values."""
  episode = {name: raw[name].decode() for name in _TEXTS}
  episode["golden_steps"] = int(raw["golden_steps"])
  episode["steps"] = [
    {
      name: value.decode() if isinstance(value, bytes) else value.item()
      for name, value in step.items()
    }
    for step in raw["steps"]
  ]
  for step in episode["steps"]:
    step["commands"] = json.loads(step["commands"])
  return episode


def load(
  data_dir: str | os.PathLike, options: Demonstrations
) -> store.Examples[dict[str, Any]]:
  """Opens a prepared dataset after checking every file.

  Raises:
    ValueError: there is no such dataset.
    RuntimeError: a file is broken.
  """
  folder = _folder(data_dir, options)
  if not (folder / store.DIGESTS).is_file():
    present = sorted(path.name for path in folder.parent.parent.glob("*"))
    raise ValueError(
      f"no demonstrations at {folder} (there are: "
      f"{', '.join(present) or 'none'}); make them with "
      f"`python -m steppo_jax data {options.env} --demonstrations`"
    )
  return store.read(folder, options.split, _as_python)
