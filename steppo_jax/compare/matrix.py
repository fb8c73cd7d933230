"""What a comparison consists of: methods, worlds, seeds and equal budgets."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Literal

from steppo_jax.models.options import LoraConfig
from steppo_jax.rollout import options as rollout_options
from steppo_jax.storage import options as storage_options
from steppo_jax.training import config


@dataclasses.dataclass(frozen=True)
class Method:
  """One line of the table.

  Attributes:
    name: Its name there.
    clip: Distances of its own clip below and above 1, scaled by the search.
    assignments: "key=value" of what else makes the method.
  """

  name: str
  clip: tuple[float, float]
  assignments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class World:
  """Where the methods are compared: a name and "key=value" assignments."""

  name: str
  assignments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Search:
  """The budget that every method gets to choose its settings.

  Attributes:
    learning_rates: Of the policy.
    clip_scales: Factors on the method's own clip.
    seeds: Seeds of the searching runs, none of those that are reported.
    assignments: What differs in these runs, such as "num_updates=20".
  """

  learning_rates: tuple[float, ...]
  clip_scales: tuple[float, ...]
  seeds: tuple[int, ...]
  assignments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Matrix:
  """Methods times worlds times seeds.

  Attributes:
    base: Experiment file that everything is assigned to.
    assignments: What all cells share.
    methods: The first is the one that the others are held against.
    worlds: Where.
    seeds: Of the runs that are reported.
    search: None takes the settings as they are written.
  """

  base: str
  methods: tuple[Method, ...]
  worlds: tuple[World, ...]
  seeds: tuple[int, ...]
  assignments: tuple[str, ...] = ()
  search: Search | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run.

  Attributes:
    kind: "search" or "final".
    world: Name.
    method: Name.
    seed: Seed.
    settings: What the search varies: rate and clip.
    assignments: All assignments, without seed and folder.
  """

  kind: Literal["search", "final"]
  world: str
  method: str
  seed: int
  settings: tuple[tuple[str, float], ...]
  assignments: tuple[str, ...]

  @property
  def folder(self) -> pathlib.Path:
    """Within the folder of the comparison."""
    name = f"seed{self.seed}"
    if self.kind == "search":
      name = "-".join(f"{value:g}" for _, value in self.settings) + f"-{name}"
    return pathlib.Path(self.kind, self.world, self.method, name)


def load(path: str) -> Matrix:
  """Reads and checks `MATRIX` of a file.

  Raises:
    ValueError: no such file, no MATRIX, or one that is not fair.
  """
  matrix = getattr(config.module(path), "MATRIX", None)
  if not isinstance(matrix, Matrix):
    raise ValueError(f"{path} defines no MATRIX of type Matrix")
  check(matrix)
  return matrix


# Settings of a method that is not searched: its own clip, the base's rate.
AS_WRITTEN = (("clip_scale", 1.0),)

# What must be equal for all methods of a world.
_EQUAL = ("weights", "tokenizer", "num_updates", "episodes", "env", "prompt",
          "rollout", "evaluation")  # fmt: skip


def check(matrix: Matrix) -> None:
  """Refuses a comparison in which one method is given more than another.

  Raises:
    ValueError: names that occur twice, search on reported seeds, a method whose
      start, episodes, updates, environment or panel differ from the first's, or
      options that do not fit each other.
  """
  for kind in ("methods", "worlds"):
    names = [x.name for x in getattr(matrix, kind)]
    if len(set(names)) < len(names) or not names:
      raise ValueError(f"{kind} need names of their own, got {names}")
  if matrix.search and set(matrix.search.seeds) & set(matrix.seeds):
    raise ValueError(
      f"search.seeds={matrix.search.seeds} are reported as well: choose others"
    )
  for world in matrix.worlds:
    first = None
    for method in matrix.methods:
      found = _given(options(matrix, world, method))
      first = first or found
      for name in _EQUAL:
        if found[name] != first[name]:
          raise ValueError(
            f"{method.name} in {world.name} has {name}={found[name]},"
            f" {matrix.methods[0].name} has {first[name]}: give them the same"
          )


def _given(run: config.RunConfig) -> dict:
  """What a run is given: the number of its episodes, however grouped."""
  return {
    name: run.tasks_per_update * run.group_size
    if name == "episodes"
    else getattr(run, name)
    for name in _EQUAL
  }


def options(matrix: Matrix, world: World, method: Method) -> config.RunConfig:
  """The options of a method in a world, before any search.

  Raises:
    ValueError: the algorithm's constants do not fit each other.
  """
  cell = _cell(matrix, "final", world, method, 0, AS_WRITTEN)
  run = parse(matrix.base, cell.assignments)
  run.algorithm.row()
  return run


# Reading a class's source from two threads at once fails: CPython counts the
# depth of its parser for the whole process.
_READING = threading.Lock()


@functools.cache
def parse(base: str, assignments: tuple[str, ...]) -> config.RunConfig:
  """The options of an experiment with assignments applied.

  Raises:
    ValueError: they do not fit, or the experiment is of another kind.
  """
  try:
    with _READING:
      run = config.override(config.load(base), assignments, "compare")
  except SystemExit as error:
    raise ValueError(
      f"{base} does not take {' '.join(assignments)}: see the message above"
    ) from error
  if not isinstance(run, config.RunConfig):
    raise ValueError(f"{base} is not a run of reinforcement learning")
  return run


# Options that came after results were kept, with the value at which a run is
# what it was without them.
_LATER = (
  (("evaluation", "temperature"), 0.0),
  (("base",), None),
  (("learner", "critic_layers"), None),
  (("learner", "critic_reads"), "prompts"),
  (("learner", "critic_lora"), dataclasses.asdict(LoraConfig())),
  (("learner", "remat"), "auto"),
  (("rollout", "staleness"), 0),
  (("rollout", "max_seconds"), None),
  (("rollout", "max_invalid"), None),
  (("mesh", "rollout_devices"), 0),
  (("rollout", "stall_seconds"), 60.0),
  (("sampler", "keep_cache_across_versions"), False),
  (("sampler", "tensor"), 1),
  (("sampler", "attention"), "auto"),
  (("rollout", "source"), "env"),
  (("rollout", "engine"), "internal"),
  (("agents",), dataclasses.asdict(rollout_options.AgentConfig())),
  (("engines",), dataclasses.asdict(rollout_options.EngineConfig())),
  (
    ("dynamic_sampling",),
    dataclasses.asdict(rollout_options.DynamicSampling()),
  ),
  (("learner", "optimizer"), "adamw"),
  (("record_format",), "tfds"),
  (("record_credit",), None),
  (("metrics",), dataclasses.asdict(storage_options.MetricsConfig())),
  (("env", "python"), None),
)
# Options of a method that there were before; of all others None came later.
_ALGORITHM = frozenset((
  "name", "discount", "lambda_", "clip_low", "clip_high", "kl_coef",
  "entropy_coef", "ratio", "loss_weighting", "mix_updates", "teacher",
))  # fmt: skip


def digest(matrix: Matrix, cell: Cell) -> str:
  """Tells runs apart by all their options; two with equal ones are the same.

  A file counts by its content, wherever a clone keeps it.
  """
  run = parse(matrix.base, cell.assignments)
  run = dataclasses.replace(run, seed=cell.seed, run_dir=None)
  options = dataclasses.asdict(run)
  if run.weights and pathlib.Path(run.weights).is_file():
    options["weights"] = _digest_file(run.weights)
  for (*groups, name), value in _LATER:
    group = functools.reduce(dict.get, groups, options)
    if group[name] == value:
      del group[name]
  options["algorithm"] = {
    name: value
    for name, value in options["algorithm"].items()
    if name in _ALGORITHM or value is not None
  }
  text = json.dumps(options, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _digest_file(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def search_cells(matrix: Matrix) -> Iterator[Cell]:
  """The searching runs, all methods of a setting and seed side by side."""
  search = matrix.search
  if search is None:
    return
  for seed in search.seeds:
    for rate in search.learning_rates:
      for scale in search.clip_scales:
        for world in matrix.worlds:
          for method in matrix.methods:
            settings = (("learning_rate", rate), ("clip_scale", scale))
            yield _cell(matrix, "search", world, method, seed, settings)


def final_cells(matrix: Matrix, chosen: dict) -> Iterator[Cell]:
  """The reported runs, seed after seed.

  Args:
    matrix: The comparison.
    chosen: Settings by (world, method); those without are left out.
  """
  for seed in matrix.seeds:
    for world in matrix.worlds:
      for method in matrix.methods:
        settings = chosen.get((world.name, method.name))
        if settings is not None:
          yield _cell(matrix, "final", world, method, seed, settings)


def _cell(matrix, kind, world, method, seed, settings) -> Cell:
  values = dict(settings)
  low, high = (x * values["clip_scale"] for x in method.clip)
  assignments = {}
  parts = [matrix.assignments, world.assignments, method.assignments]
  own = [f"algorithm.clip_low={low:g}", f"algorithm.clip_high={high:g}"]
  if "learning_rate" in values:
    own.append(f"learner.learning_rate={values['learning_rate']:g}")
  parts.append(own)
  if kind == "search":
    parts.append(matrix.search.assignments)
  for part in parts:
    # The last assignment of a key holds: it may be given once only.
    assignments |= {x.partition("=")[0]: x for x in part}
  return Cell(
    kind, world.name, method.name, seed, settings, tuple(assignments.values())
  )
