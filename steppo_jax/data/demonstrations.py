"""Demonstrations of generated worlds as a TFDS dataset in RLDS form.

The dataset is made here, from generated tasks and their experts; nothing is
downloaded, and TensorFlow is not imported. An episode is

    uid, family, split, size, task   str
    golden_steps                     int, length of a shortest solution
    steps                            list, one more than there are actions

and a step `observation` and `action` (str), `reward` (float), `is_first`,
`is_last` and `is_terminal` (bool). The last step holds the final observation
and the action "", as RLDS has it.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from steppo_jax import types
from steppo_jax.data import experts, store
from steppo_jax.envs import base

_TEXTS = ("uid", "family", "split", "size", "task")


@dataclasses.dataclass(frozen=True)
class Demonstrations:
  """What is demonstrated.

  Attributes:
    split: of the tasks: "train", "valid_seen" or "valid_unseen".
    sizes: of the worlds, taken in turn.
    num_episodes: number of tasks, one demonstration each.
    seed: tasks of different seeds are different, up to 10 million each.
    detours: of the household alone: mean number of places that the expert
      searches before it uses the planner's knowledge: 0 demonstrates shortest
      plans alone, `math.inf` an expert that finds everything itself.
    noise: chance of a mistake at a step: of a command that is drawn from all
      admissible ones (household), of an answer before enough was read
      (search_qa). Mistaken answers lose the episode.
    env: whose worlds, a key of `experts.EXPERTS`.
    options: "name=value" of that environment's own parameters, which change
      what is seen; of the household's, "scratchpad=true" alone, with which a
      thought is written before each command (see `data.scratchpad`).
    brief: of the household with a scratchpad: thoughts of some 20 tokens
      instead of 50.
  """

  split: str
  sizes: tuple[str, ...]
  num_episodes: int
  seed: int
  detours: float = 0.0
  noise: float = 0.0
  env: str = "household"
  options: tuple[str, ...] = ()
  brief: bool = False

  def __post_init__(self):
    if self.env not in experts.EXPERTS:
      raise ValueError(
        f"there are demonstrations of {', '.join(experts.EXPERTS)}, not of "
        f"{self.env!r}"
      )
    worlds = experts.EXPERTS[self.env].worlds
    if self.split not in worlds.SPLITS:
      raise ValueError(
        f"split must be one of {', '.join(worlds.SPLITS)}, got {self.split!r}"
      )
    if isinstance(self.sizes, str) or not self.sizes:
      raise ValueError(f"sizes must be a tuple of names, got {self.sizes!r}")
    for size in self.sizes:
      if size not in worlds.SIZES:
        raise ValueError(
          f"sizes must be among {', '.join(worlds.SIZES)}, got {size!r}"
        )
    if not 1 <= self.num_episodes <= 10_000_000:
      raise ValueError(
        f"num_episodes must be 1 to 10,000,000, got {self.num_episodes}"
      )
    if self.seed < 0:
      raise ValueError(f"seed must be at least 0, got {self.seed}")
    if not self.detours >= 0:
      raise ValueError(f"detours must be at least 0, got {self.detours}")
    if not 0 <= self.noise < 1:
      raise ValueError(f"noise must be in [0, 1), got {self.noise}")
    found = experts.EXPERTS[self.env]
    if self.detours and found.plan is not None:
      raise ValueError(
        f"detours belong to the household's expert, not to that of {self.env}"
      )
    if self.noise and found.plan is not None and found.spoil is None:
      raise ValueError(f"the expert of {self.env} makes no mistakes: noise=0")
    own = base.parse_options(self.options)
    if self.env == "household" and not own.keys() <= {"scratchpad"}:
      raise ValueError(
        f"the household's games are shown as they are: leave {self.options} out"
      )
    if self.brief and not self.thoughts:
      raise ValueError(
        "brief thoughts need a scratchpad: env=household and "
        "options=scratchpad=true"
      )

  @property
  def name(self) -> str:
    """Names the folder: equal options, equal data."""
    name = (
      f"{self.split}-{'_'.join(self.sizes)}-n{self.num_episodes}"
      f"-seed{self.seed}"
    )
    if self.env == "household":
      name = f"{name}-detours{self.detours:g}-noise{self.noise:g}"
      name += "-scratchpad" if self.thoughts else ""
      return name + "-brief" * self.brief
    text = "\n".join(sorted(self.options))
    name += f"-noise{self.noise:g}" if self.noise else ""
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

  @property
  def thoughts(self) -> str | None:
    """What stands before each command of the household: "long" or "brief"."""
    own = base.parse_options(self.options)
    if self.env != "household" or not own.get("scratchpad"):
      return None
    return "brief" if self.brief else "long"

  def task(self, index: int) -> types.Task:
    """The task of an episode."""
    return experts.EXPERTS[self.env].worlds.generate(
      self.seed * 10_000_000 + index,
      split=self.split,
      size=self.sizes[index % len(self.sizes)],
    )


def _play(options: Demonstrations):
  """Yields (task, how it was demonstrated) of every episode."""
  _, plan, spoil = experts.EXPERTS[options.env]
  if plan is not None:
    own = base.parse_options(options.options)
    env = experts.make_env(options.env, own)
  for index in range(options.num_episodes):
    task = options.task(index)
    random = np.random.default_rng((options.seed, index))
    if plan is not None:
      actions = plan(task)
      if options.noise:
        actions = spoil(task, actions, noise=options.noise, random=random)
      yield task, experts.play(task, env, actions, wins=not options.noise)
      continue
    yield (
      task,
      experts.play_household(
        task,
        detours=options.detours,
        noise=options.noise,
        random=random,
        thoughts=options.thoughts,
      ),
    )


def _episode(
  options: Demonstrations, index: int, task: types.Task, played: experts.Played
) -> dict[str, Any]:
  last = len(played.actions)
  what = {"webshop": "instruction", "household": "task"}
  return {
    "uid": task.uid,
    "family": task.family,
    "split": options.split,
    "size": options.sizes[index % len(options.sizes)],
    "task": task.payload[what.get(options.env, "question")],
    "golden_steps": task.golden_steps,
    "steps": [
      {
        "observation": observation,
        "action": played.actions[k] if k < last else "",
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

  VERSION = tfds.core.Version("1.0.0")

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
