"""Options of a run: each part declares its own, here they are composed."""

import dataclasses
import difflib
import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from steppo_jax import algorithms
from steppo_jax.data import task_sets
from steppo_jax.data.demonstrations import Demonstrations
from steppo_jax.envs import base
from steppo_jax.envs.process import WorkerLimits
from steppo_jax.learner import LearnerConfig
from steppo_jax.models import presets
from steppo_jax.packing import PackingConfig
from steppo_jax.rollout.loop import RolloutConfig
from steppo_jax.rollout.prompting import PromptConfig
from steppo_jax.sampler.engine import SamplerConfig
from steppo_jax.supervised import SupervisedConfig

# The teacher that is the policy itself; see `peers`.
PEER = "peer"


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  """The row of the table and the constants that replace the row's own.

  Attributes:
    name: See `python -m steppo_jax algorithms`.
    discount: γ on the estimator's clock.
    lambda_: λ on the estimator's clock.
    clip_low: Distance of the clip below 1; it belongs to the kind of ratio.
    clip_high: Distance of the clip above 1.
    kl_coef: Weight of the KL to the starting policy.
    entropy_coef: Weight of the entropy bonus.
    loss_weighting: What counts the same in the loss: each "token", each "step"
      or each "trajectory".
    mix_updates: Updates over which the weight of the teacher falls to 0; 0 lets
      it stay.
    teacher: Who re-weights the credit, for the rows that need a teacher: "peer"
      is the policy itself, shown a successful episode of the same task; any
      other text is the safetensors file of a policy that sees what the student
      sees.
  """

  name: str = "steppo"
  discount: float | None = None
  lambda_: float | None = None
  clip_low: float | None = None
  clip_high: float | None = None
  kl_coef: float | None = None
  entropy_coef: float | None = None
  loss_weighting: str | None = None
  mix_updates: int | None = None
  teacher: str | None = None

  @property
  def teacher_file(self) -> str | None:
    """The file of a teacher with weights of its own, None without one."""
    return None if self.teacher == PEER else self.teacher

  def row(self) -> algorithms.Algorithm:
    """The row with its constants replaced.

    Raises:
      ValueError: unknown name or weighting, a clip that cannot fit the ratio,
        or a teacher or schedule that the row does not read.
    """
    changes = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(algorithms.Algorithm)
      if getattr(self, field.name, None) is not None
    }
    row = dataclasses.replace(algorithms.get(self.name), **changes)
    if self.loss_weighting is not None:
      row = algorithms.weighted(row, self.loss_weighting)
    algorithms.check_clip(row)
    algorithms.check_mix(row)
    if self.teacher is not None and "teacher" not in row.needs:
      raise ValueError(
        f"algorithm.teacher={self.teacher} is not read by {self.name}: leave "
        "it out"
      )
    return row


@dataclasses.dataclass(frozen=True)
class EnvConfig:
  """Which environment is played, and where.

  Attributes:
    name: "household", "alfworld" (its real games), "webshop", "search_qa",
      "paper_search", any other name of `envs.base.ENVS`, or one of an installed
      package.
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
  """

  name: str = "household"
  size: str = "small"
  data_dir: str | None = None
  task_set: str | None = None
  invalid_penalty: float = 0.1
  options: tuple[str, ...] = ()
  workers: int = 0
  limits: WorkerLimits = WorkerLimits()

  def __post_init__(self):
    base.row(self.name)
    if self.workers < 0:
      raise ValueError(f"env.workers={self.workers} must be at least 0")

  def recipes(self) -> base.Recipes:
    """How the environment and its task lists are made.

    Raises:
      ValueError: an option that the environment does not have, or that it
        needs.
    """
    own = base.parse_options(self.options)
    names = ("name", "size", "data_dir", "invalid_penalty")
    common = {name: getattr(self, name) for name in names}
    if self.task_set is None:
      return base.resolve(self.name, common, own)
    return task_sets.recipes(self.task_set, self.name, common, own)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Greedy evaluation on a pinned panel of tasks.

  Attributes:
    every: Updates between two evaluations; the last update is evaluated too.
    episodes: Size of the panel.
    split: Split it is taken from.
  """

  every: int = 10
  episodes: int = 500
  split: str = "valid_unseen"


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run of reinforcement learning.

  Attributes:
    seed: Root of everything random in training.
    run_dir: Folder of the results; None for runs/NAME-seedSEED.
    weights: Safetensors file of the starting policy.
    tokenizer: "household", "worlds" (generated shops, questions and papers), a
      SentencePiece model's file, the folder of a released model or its GGUF
      file; the one that the weights were trained with.
    num_updates: Length of the run.
    tasks_per_update: Tasks whose episodes make one batch.
    group_size: Episodes of each task.
    checkpoint_every: Updates between two checkpoints.
    keep_checkpoints: How many are kept.
    record_every: Updates between two whose episodes are kept, with all their
      tokens, as datasets in the run folder (see `data.trajectories`); None
      keeps none.
    num_devices: Devices that rows are split over; None takes all.
  """

  weights: str
  tokenizer: str = "household"
  seed: int = 0
  run_dir: str | None = None
  num_updates: int = 60
  tasks_per_update: int = 128
  group_size: int = 1
  checkpoint_every: int = 5
  keep_checkpoints: int = 2
  record_every: int | None = None
  num_devices: int | None = None
  algorithm: AlgorithmConfig = AlgorithmConfig()
  env: EnvConfig = EnvConfig()
  prompt: PromptConfig = PromptConfig()
  rollout: RolloutConfig = RolloutConfig()
  sampler: SamplerConfig = SamplerConfig()
  packing: PackingConfig = PackingConfig()
  learner: LearnerConfig = LearnerConfig()
  evaluation: EvalConfig = EvalConfig()

  def __post_init__(self):
    if self.packing.row_length < self.rollout.max_tokens:
      raise ValueError(
        f"packing.row_length={self.packing.row_length} is shorter than "
        f"rollout.max_tokens={self.rollout.max_tokens}"
      )
    for name in ("num_updates", "tasks_per_update", "group_size",
                 "record_every"):  # fmt: skip
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1")


@dataclasses.dataclass(frozen=True)
class SupervisedRun:
  """A run of supervised learning on planner demonstrations.

  Attributes:
    weights: Safetensors file to start from; None starts from scratch.
    save_weights: Safetensors file to write at the end; None writes none.
    tokenizer: See `RunConfig`.
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
  model: str = "micro"
  seed: int = 0
  run_dir: str | None = None
  demonstrations: Demonstrations = Demonstrations(
    split="train", sizes=("small",), num_episodes=2000, seed=0, detours=0.0
  )
  data_dir: str = "runs/data"
  minutes: float | None = None
  env: EnvConfig = EnvConfig()
  rollout: RolloutConfig = RolloutConfig()
  sampler: SamplerConfig = SamplerConfig()
  packing: PackingConfig = PackingConfig()
  training: SupervisedConfig = SupervisedConfig()
  evaluation: EvalConfig = EvalConfig()

  def __post_init__(self):
    if self.model not in presets.PRESETS:
      raise ValueError(
        f"model={self.model!r} is none of {', '.join(presets.PRESETS)}"
      )


def load(path: str) -> RunConfig | SupervisedRun:
  """Reads `CONFIG` of an experiment file.

  Raises:
    ValueError: no such file, or it defines no CONFIG.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    folder = (
      file.parent if file.parent.is_dir() else pathlib.Path("experiments")
    )
    names = [str(p) for p in sorted(folder.glob("*.py"))]
    near = difflib.get_close_matches(str(file), names, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]}" if near else ""
    raise ValueError(f"no experiment file {path}{hint}")
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  # An experiment may import the one beside it that it differs from.
  sys.path.insert(0, str(file.parent.absolute()))
  try:
    spec.loader.exec_module(module)
  finally:
    sys.path.pop(0)
  config = getattr(module, "CONFIG", None)
  if not isinstance(config, RunConfig | SupervisedRun):
    raise ValueError(f"{path} defines no CONFIG of type RunConfig")
  return config


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
  for name in key.split("."):
    config = getattr(config, name)
  return isinstance(config, tuple)
