"""Options of a run: each part declares its own, here they are composed."""

import dataclasses
import difflib
import importlib.util
import json
import math
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import tyro

from steppo_jax.algorithms.options import AlgorithmConfig
from steppo_jax.algorithms.table import Algorithm
from steppo_jax.datasets.options import Demonstrations
from steppo_jax.envs import base
from steppo_jax.envs.workers.options import WorkerLimits
from steppo_jax.learner.options import LearnerConfig, SupervisedConfig
from steppo_jax.models import presets
from steppo_jax.models.options import MeshConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.prompts.options import PromptConfig
from steppo_jax.rollout.options import (
  AgentConfig,
  DynamicSampling,
  EngineConfig,
  RolloutConfig,
)
from steppo_jax.sampler.options import SamplerConfig
from steppo_jax.storage.options import MetricsConfig
from steppo_jax.training import experiments

# What other trainers offer and this one refuses, with the reason.
_REFUSED = {
  name: "rollouts sample from the whole softmax, so that the log-probs of "
  "sampler and learner are of one distribution; use rollout.temperature"
  for name in ("top_p", "top_k", "min_p")
}


@dataclasses.dataclass(frozen=True)
class EnvConfig:
  """Which environment is played, and where.

  Attributes:
    name: "household", "alfworld" (its real games), "webshop", "search_qa",
      "paper_search", "recommend", any other name of `envs.base.ENVS`, or one
      of an installed package.
    size: Size of generated worlds: tiny, small, medium or full.
    data_dir: Folder of real tasks; "alfworld" needs one, "household" has none,
      the others generate their tasks without.
    task_set: Folder of tasks that `python -m steppo_jax data` prepared, in
      place of `size` and `data_dir`.
    invalid_penalty: Subtracted from the reward of a refused command or call.
    options: "name=value" of the environment's own parameters; a value is JSON,
      or else text.
    workers: Processes that environments live in, each with one episode at a
      time; 0 for this process. `rollout.env_threads` of the same number lets
      them work side by side.
    limits: Of a worker process.
    python: Interpreter of the worker processes, such as one whose environment
      has what a package for the game asks for and this one must not; None for
      this one. It needs Python 3.11 and NumPy, and not this package.
  """

  name: str = "household"
  size: str = "small"
  data_dir: str | None = None
  task_set: str | None = None
  invalid_penalty: float = 0.1
  options: tuple[str, ...] = ()
  workers: int = 0
  limits: WorkerLimits = WorkerLimits()
  python: str | None = None

  def __post_init__(self):
    base.row(self.name)
    if self.workers < 0:
      raise ValueError(f"env.workers={self.workers} must be at least 0")
    if self.python is not None and not self.workers:
      raise ValueError(
        f"env.python={self.python} is for worker processes: set env.workers"
      )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation on a pinned panel of tasks, one episode of each.

  Attributes:
    every: Updates between two evaluations; the last update is evaluated too.
    episodes: Size of the panel.
    split: Split it is taken from.
    temperature: 0 is greedy; rollout.temperature measures what is trained.
  """

  every: int = 10
  episodes: int = 500
  split: str = "valid_unseen"
  temperature: float = 0.0

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f"evaluation.every={self.every} must be at least 1")
    if not 0 <= self.temperature < math.inf:
      raise ValueError(
        f"evaluation.temperature={self.temperature} must be at least 0 and "
        "finite; 0 is greedy"
      )


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run of reinforcement learning.

  Attributes:
    seed: Root of everything random in training.
    run_dir: Folder of the results; None for runs/NAME-seedSEED.
    weights: The starting policy: a safetensors file of an earlier run, or a
      released model (a folder with config.json, a GGUF file, a package), or a
      folder of PEFT's adapters, which are then trained on.
    tokenizer: The one that the weights were trained with: "household", "worlds"
      (generated shops, questions and papers), "model" (inside of a released
      model), "bytes", or what `python -m steppo_jax generate` takes.
    base: The model that PEFT's adapters belong to; None for the one they name.
    compute: Type that the decoder computes in, "float32" or "bfloat16"; None
      for what the weights say.
    remat: What is computed again in the backward pass, see `ModelConfig`; None
      for what the weights say.
    num_updates: Length of the run.
    tasks_per_update: Tasks whose episodes make one batch.
    group_size: Episodes of each task.
    checkpoint_every: Updates between two checkpoints.
    keep_checkpoints: How many are kept.
    keep_journals: Updates whose episodes stay in the journal after a restart
      cannot need them any more; None keeps no journal at all.
    record_every: Updates between two whose episodes are kept, with all their
      tokens, as datasets in the run folder (see `datasets.trajectories`); None
      keeps none.
    record_format: Of those datasets, and of an evaluation's: "tfds" (RLDS),
      "parquet" or "jsonl" (`datasets.tables`), or "atif" (`datasets.atif`).
    record_credit: Updates between two whose credit is recorded: value,
      advantage and ratio of every step, log-prob and entropy of every token
      (see `storage.credit`); 1 records every update, None none.
    num_devices: Devices that the learner runs on; None takes all.
  """

  weights: str
  tokenizer: str = "household"
  base: str | None = None
  compute: str | None = None
  remat: str | None = None
  seed: int = 0
  run_dir: str | None = None
  num_updates: int = 60
  tasks_per_update: int = 128
  group_size: int = 1
  checkpoint_every: int = 5
  keep_checkpoints: int = 2
  keep_journals: int | None = 2
  record_every: int | None = None
  record_format: Literal["tfds", "parquet", "jsonl", "atif"] = "tfds"
  record_credit: int | None = None
  num_devices: int | None = None
  algorithm: AlgorithmConfig = AlgorithmConfig()
  env: EnvConfig = EnvConfig()
  prompt: PromptConfig = PromptConfig()
  rollout: RolloutConfig = RolloutConfig()
  agents: AgentConfig = AgentConfig()
  engines: EngineConfig = EngineConfig()
  dynamic_sampling: DynamicSampling = DynamicSampling()
  sampler: SamplerConfig = SamplerConfig()
  packing: PackingConfig = PackingConfig()
  mesh: MeshConfig = MeshConfig()
  learner: LearnerConfig = LearnerConfig()
  evaluation: EvalConfig = EvalConfig()
  metrics: MetricsConfig = MetricsConfig()

  def check_training(self) -> None:
    """Refuses what fits no training, whatever the weights and the world.

    An evaluation packs nothing and has no algorithm: it does not call this.

    Raises:
      ValueError: an episode may be longer than a row, the algorithm's options
        do not fit (see `AlgorithmConfig.row`), or dynamic sampling would drop
        groups that the algorithm learns from.
    """
    if self.packing.row_length < self.rollout.max_tokens:
      raise ValueError(
        f"packing.row_length={self.packing.row_length} is shorter than "
        f"rollout.max_tokens={self.rollout.max_tokens}"
      )
    self._check_dynamic_sampling(self.algorithm.row())
    self._check_source()

  def _check_source(self) -> None:
    """Refuses ways of playing that do not go together."""
    ways = {
      "rollout.staleness": self.rollout.staleness or None,
      "rollout.source": self.rollout.source,
      "dynamic_sampling.max_rounds": self.dynamic_sampling.max_rounds,
    }
    if self.rollout.source == "agents" and self.rollout.staleness:
      del ways["rollout.source"]
    given = [f"{k}={v}" for k, v in ways.items() if v not in (None, "env")]
    if len(given) > 1:
      raise ValueError(
        f"{' and '.join(given)} do not go together yet: leave all but one out"
      )
    self._check_sampler()

  def _check_sampler(self) -> None:
    """Refuses options of a sampler that this way of playing does not have."""
    played = self.rollout
    own = (played.source, played.engine) == ("env", "internal")
    kept = self.sampler.keep_cache_across_versions
    if kept and not (own and played.staleness):
      raise ValueError(
        "sampler.keep_cache_across_versions=True is for episodes that the run "
        "plays with its own sampler while weights change: set "
        "rollout.staleness to 1 or more, with rollout.source=env and "
        "rollout.engine=internal, or leave it out"
      )
    if self.sampler.tensor > 1 and not (own and played.staleness == 0):
      # Servers split their own models. And two threads, as a gateway's and the
      # learner's are, that start programs in which devices wait for each other
      # may start them in another order on each.
      raise ValueError(
        f"sampler.tensor={self.sampler.tensor} goes with rollout.source=env, "
        "rollout.engine=internal and rollout.staleness=0 alone for now: leave "
        f"it out with rollout.source={played.source}, rollout.engine="
        f"{played.engine} and rollout.staleness={played.staleness}"
      )

  def _check_dynamic_sampling(self, row: Algorithm) -> None:
    rounds = self.dynamic_sampling.max_rounds
    if rounds is None:
      return
    if "group" not in row.needs or row.critic is not None:
      raise ValueError(
        f"dynamic_sampling.max_rounds={rounds} drops groups whose rewards are "
        f"equal, and algorithm.name={self.algorithm.name} learns from single "
        "episodes: leave it out, or take a row that compares groups, such as "
        "algorithm.name=dapo with group_size above 1"
      )
    least = self.dynamic_sampling.min_groups or 0
    if least > self.tasks_per_update:
      raise ValueError(
        f"dynamic_sampling.min_groups={least} is above tasks_per_update="
        f"{self.tasks_per_update}, the most groups that a batch holds"
      )

  def __post_init__(self):
    for name in (
      "num_updates", "tasks_per_update", "group_size", "checkpoint_every",
      "record_every", "record_credit",
    ):  # fmt: skip
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1")
    if self.keep_journals is not None and self.keep_journals < 0:
      raise ValueError(
        f"keep_journals={self.keep_journals} must be at least 0, or None"
      )


@dataclasses.dataclass(frozen=True)
class SupervisedRun:
  """A run of supervised learning on planner demonstrations.

  Attributes:
    weights: What to start from, see `RunConfig`; None starts from scratch.
    save_weights: Safetensors file to write at the end; None writes none.
    tokenizer: See `RunConfig`.
    base: See `RunConfig`.
    model: Preset of a model that starts from scratch.
    seed: Root of everything random in training.
    run_dir: Folder of the results; None for runs/NAME-seedSEED.
    demonstrations: What is demonstrated.
    data_dir: Folder of the TFDS dataset, prepared when missing.
    minutes: Stop after so many minutes of training, if that comes first.
  """

  weights: str | None = None
  save_weights: str | None = None
  tokenizer: str = "household"
  base: str | None = None
  model: str = "micro"
  seed: int = 0
  run_dir: str | None = None
  demonstrations: Demonstrations = Demonstrations(
    split="train", sizes=("small",), num_episodes=2000, seed=0, detours=0.0
  )
  data_dir: str = "runs/data"
  minutes: float | None = None
  env: EnvConfig = EnvConfig()
  prompt: PromptConfig = PromptConfig()
  rollout: RolloutConfig = RolloutConfig()
  sampler: SamplerConfig = SamplerConfig()
  packing: PackingConfig = PackingConfig()
  training: SupervisedConfig = SupervisedConfig()
  evaluation: EvalConfig = EvalConfig()
  metrics: MetricsConfig = MetricsConfig()

  def __post_init__(self):
    if self.model not in presets.PRESETS:
      raise ValueError(
        f"model={self.model!r} is none of {', '.join(presets.PRESETS)}"
      )


def load(path: str) -> RunConfig | SupervisedRun:
  """Reads `CONFIG` of an experiment.

  Args:
    path: A file, or a name that `experiments.find` knows.

  Raises:
    ValueError: no such experiment, or it defines no CONFIG.
  """
  config = getattr(module(path), "CONFIG", None)
  if not isinstance(config, RunConfig | SupervisedRun):
    raise ValueError(f"{path} defines no CONFIG of type RunConfig")
  return config


def module(path: str) -> types.ModuleType:
  """What an experiment defines.

  Args:
    path: A file, or a name that `experiments.find` knows.

  Raises:
    ValueError: there is no such experiment; the message names the nearest.
  """
  file = experiments.find(path)
  spec = importlib.util.spec_from_file_location(file.stem, file)
  loaded = importlib.util.module_from_spec(spec)
  # An experiment may import the one beside it that it differs from.
  sys.path.insert(0, str(file.parent.absolute()))
  try:
    spec.loader.exec_module(loaded)
  finally:
    sys.path.pop(0)
  return loaded


def override(config: Any, assignments: Sequence[str], command: str) -> Any:
  """Applies `key=value` assignments; `--help` lists every key.

  Args:
    config: The experiment's options, which are the defaults.
    assignments: Such as "learner.learning_rate=1e-3".
    command: Shown in help and errors.

  Raises:
    SystemExit: an unknown key, whose nearest is named, or a wrong type; as
      usual for a command line.
  """
  args = []
  for assignment in assignments:
    if assignment in ("-h", "--help"):
      args.append("--help")
      continue
    key, equals, value = assignment.partition("=")
    if not equals or key.startswith("-"):
      raise ValueError(f"expected key=value, got {assignment!r}")
    known = keys(config)
    if key not in known:
      reason = _REFUSED.get(key.rpartition(".")[2])
      if reason:
        raise ValueError(f"there is no {key}: {reason}")
      near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
      raise ValueError(f"unknown option {key!r}, did you mean {near[0]!r}")
    args += [
      f"--{key}",
      *(value.split(",") if _is_tuple(config, key) else [value]),
    ]
  return tyro.cli(
    type(config),
    default=config,
    args=args,
    prog=command,
    config=(tyro.conf.FlagConversionOff,),
  )


def from_json(kind: type, text: str) -> Any:
  """Options as a run's folder has them (`storage.folder.options_of`).

  Those of an older version lack options that came later, which have their
  defaults.

  Args:
    kind: Class of the options, such as `RunConfig`.
    text: JSON.

  Raises:
    ValueError: it is not JSON, or not of such options.
  """
  return _built(kind, json.loads(text), "")


def _built(kind: Any, value: Any, prefix: str) -> Any:
  if not dataclasses.is_dataclass(kind):
    # JSON has no tuples, and no option is a list.
    return tuple(value) if isinstance(value, list) else value
  if not isinstance(value, dict):
    raise ValueError(f"{prefix or 'they'} must be an object, it is {value!r}")
  hints = typing.get_type_hints(kind)
  unknown = sorted(set(value) - set(hints))
  if unknown:
    raise ValueError(f"there is no option {prefix}{unknown[0]}")
  try:
    return kind(
      **{
        name: _built(hints[name], one, f"{prefix}{name}.")
        for name, one in value.items()
      }
    )
  except TypeError as error:
    raise ValueError(f"an option is missing or of a wrong type: {error}") from (
      error
    )


def keys(config: Any, prefix: str = "") -> list[str]:
  """Names of all options, such as "learner.learning_rate"."""
  names = []
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      names += keys(value, f"{prefix}{field.name}.")
    else:
      names.append(prefix + field.name)
  return names


def _is_tuple(config: Any, key: str) -> bool:
  *owners, name = key.split(".")
  for owner in owners:
    config = getattr(config, owner)
  kind = typing.get_type_hints(type(config))[name]
  return any(
    typing.get_origin(one) is tuple for one in (kind, *typing.get_args(kind))
  )
