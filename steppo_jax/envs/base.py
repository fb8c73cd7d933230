"""The environments by name, and the errors that environments share.

An environment is named by a row of `ENVS`, or by an entry point of an installed
package: group `steppo_jax.envs`, whose object is a `Row`. Nothing of it is
imported before it is made.
"""

import dataclasses
import difflib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple, Protocol

from steppo_jax import types

ENTRY_POINTS = "steppo_jax.envs"


class EnvError(RuntimeError):
  """An environment that failed; it costs its own episode and no other."""


class EnvTimeout(EnvError):
  """No answer within the time limit."""


class EnvDied(EnvError):
  """The worker process ended by itself, or never came up."""


class EnvOutOfMemory(EnvError):
  """The worker asked for more memory than it may have."""


class EnvLeaseLost(EnvError):
  """The episode kept its worker longer than it may, and it was taken away."""


class EnvUnreachable(EnvError):
  """A remote environment that takes no connection."""


class EnvBadAnswer(EnvError):
  """An answer that is none: not JSON, a status of failure, a missing field."""


class EnvRaised(EnvError):
  """An exception that the environment raised in its worker process.

  Attributes:
    cause: Name of the exception's type, by which the episode is counted.
  """

  def __init__(self, cause: str, message: str):
    super().__init__(message)
    self.cause = cause


class TaskList(Protocol):
  """Tasks as pure functions of their arguments: nothing to save."""

  def sample(self, count: int, *, seed: int, update: int) -> list[types.Task]:
    """Training tasks of an update."""

  def panel(self, split: str, count: int) -> list[types.Task]:
    """At most `count` tasks of a split, the same in every run."""


class Row(NamedTuple):
  """How an environment is made.

  The arguments of both come from the options `env.*` and from `env.options`, by
  name: an option that is not a parameter is not given.

  Attributes:
    env: "module:name" of a callable that makes one `types.Env`.
    tasks: "module:name" of a callable that makes a `TaskList`.
    expert: "module:name" of an `experts.Expert`, which demonstrates the
      environment; None without demonstrations.
    guide: "module:name" of a `guides.Guide`, which prompts in sections tell the
      agent; None for a general one.
  """

  env: str
  tasks: str
  expert: str | None = None
  guide: str | None = None


def _own(folder: str, env: str, tasks: str, expert: str | None = None) -> Row:
  """The row of an environment that is whole in one folder of this room."""
  room = f"steppo_jax.envs.{folder}"
  return Row(
    f"{room}.{env}",
    f"{room}.tasks:{tasks}",
    expert=expert and f"{room}.expert:{expert}",
    guide=f"{room}.tasks:GUIDE",
  )


_SEEDS = "steppo_jax.envs.seeds:SeedTasks"


def _text_world(module: str, env: str, expert: str | None = None) -> Row:
  """The row of a game of another package; see `text_worlds.adapter`."""
  target = f"steppo_jax.envs.text_worlds.{module}"
  return Row(
    f"{target}:{env}",
    _SEEDS,
    expert=expert and f"{target}:{expert}",
    guide=f"{target}:GUIDE",
  )


ENVS: dict[str, Row] = {
  "household": _own("household", "env:HouseholdEnv", "household", "EXPERT"),
  "alfworld": _own("household", "env:HouseholdEnv", "household_recorded"),
  # The original engine of the same games, to check ours against.
  "alfworld_original": _own(
    "household", "alfworld_original:OriginalEnv", "household_original"
  ),
  "webshop": _own("webshop", "env:WebShopEnv", "shopping", "EXPERT"),
  "search_qa": _own("questions", "env:SearchQAEnv", "questions", "EXPERT"),
  "paper_search": _own("papers", "env:PaperSearchEnv", "papers", "EXPERT"),
  "recommend": _own("recommend", "env:RecommendEnv", "recommend", "EXPERT"),
  # Household games that fail on purpose: a rehearsal.
  "faulty": Row(
    "steppo_jax.envs.workers.faults:FaultyEnv",
    "steppo_jax.envs.household.tasks:household",
  ),
  "gymnasium": Row("steppo_jax.envs.gymnasium_text:GymnasiumEnv", _SEEDS),
  "remote": Row("steppo_jax.envs.remote:RemoteEnv", _SEEDS),
  "textworld_express": _text_world("textworld_express", "TextWorldExpress"),
  "scienceworld": _text_world("scienceworld", "ScienceWorld"),
  "textarena": _text_world("textarena", "TextArena"),
  "reasoning_gym": _text_world("reasoning_gym", "ReasoningGym"),
  "minigrid": _text_world("minigrid", "MiniGrid", "EXPERT"),
  "verifiers": Row(
    "steppo_jax.envs.verifiers.env:VerifiersEnv",
    _SEEDS,
    guide="steppo_jax.envs.verifiers.env:GUIDE",
  ),
}


class Recipe(NamedTuple):
  """A call that is still to be made, as JSON-able data.

  Attributes:
    target: "module:name" of a callable.
    options: Its keyword arguments.
  """

  target: str
  options: Mapping[str, Any]

  def make(self) -> Any:
    """Makes the call."""
    return load(self.target)(**self.options)

  def at_once(self) -> int | None:
    """How many results of the call can be in use at once; None for no limit.

    An environment that has one says so by a static method `at_once` of some of
    its options, such as one that plays in a service.
    """
    told = getattr(load(self.target), "at_once", None)
    if told is None:
      return None
    known = inspect.signature(told).parameters
    return told(**{n: v for n, v in self.options.items() if n in known})


class Recipes(NamedTuple):
  """What `resolve` found: how to make one environment and the task lists."""

  env: Recipe
  tasks: Recipe


def attribute(target: str) -> Any:
  """What "module:name" says.

  Raises:
    ValueError: the text has another form, or the module has no such name.
    ImportError: there is no such module.
  """
  module, colon, name = target.partition(":")
  if colon:
    loaded = importlib.import_module(module)
    if hasattr(loaded, name):
      return getattr(loaded, name)
  raise ValueError(f"{target!r} is not 'module:name' of something there is")


def load(target: str) -> Callable[..., Any]:
  """The callable that "module:name" says.

  Raises:
    ValueError: the text has another form, or names nothing that is callable.
    ImportError: there is no such module.
  """
  found = attribute(target)
  if not callable(found):
    raise ValueError(f"{target!r} is not 'module:name' of something callable")
  return found


def names() -> list[str]:
  """Every name that `row` knows, sorted."""
  return sorted({*ENVS, *_entry_points()})


def row(name: str) -> Row:
  """The row of an environment: the table's, else an entry point's.

  Raises:
    ValueError: there is no such environment (the nearest name is told), or an
      entry point does not give a row.
  """
  if name in ENVS:
    return ENVS[name]
  found = _entry_points()
  if name not in found:
    known = names()
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"env.name={name!r} is none of {', '.join(known)}{hint}")
  entry = found[name]
  try:
    loaded = entry.load()
  except Exception as error:
    raise ValueError(
      f"env.name={name}: entry point {entry.value} of package "
      f"{entry.dist.name} does not load: {type(error).__name__}: {error}"
    ) from error
  if not isinstance(loaded, Row):
    raise ValueError(
      f"env.name={name}: entry point {entry.value} of package "
      f"{entry.dist.name} is not a steppo_jax.envs.base.Row"
    )
  return loaded


def _entry_points() -> dict[str, metadata.EntryPoint]:
  return {e.name: e for e in metadata.entry_points(group=ENTRY_POINTS)}


def parse_options(options: Sequence[str]) -> dict[str, Any]:
  """Reads "name=value" texts; a value is JSON, or else text.

  Raises:
    ValueError: there is no "=" in a text.
  """
  own = {}
  for option in options:
    name, equals, text = option.partition("=")
    if not equals:
      raise ValueError(f"env.options: expected name=value, got {option!r}")
    try:
      own[name] = json.loads(text)
    except json.JSONDecodeError:
      own[name] = text
  return own


def resolve(
  name: str, common: Mapping[str, Any], own: Mapping[str, Any]
) -> Recipes:
  """Matches options with the parameters of an environment and its tasks.

  Args:
    name: A name that `row` knows.
    common: Options that every environment may take or leave, such as `size`;
      None stands for the environment's own default.
    own: Options meant for this environment: each must be a parameter of the
      environment or of its task lists.

  Raises:
    ValueError: an unknown name or option, or a parameter without a default
      that no option gives.
  """
  found = row(name)
  targets = (found.env, found.tasks)
  parameters = [inspect.signature(load(t)).parameters for t in targets]
  known = sorted({n for each in parameters for n in each})
  for option in own:
    if option not in known:
      near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
      hint = f", did you mean {near[0]!r}" if near else ""
      raise ValueError(f"env.options: {name} has no option {option!r}{hint}")
  given = {n: v for n, v in common.items() if v is not None} | {**own}
  recipes = []
  for target, each in zip(targets, parameters, strict=True):
    for parameter in each.values():
      if parameter.default is parameter.empty and parameter.name not in given:
        raise ValueError(_missing(name, parameter.name, common))
    recipes.append(
      Recipe(target, {n: v for n, v in given.items() if n in each})
    )
  return Recipes(*recipes)


def _missing(name, parameter, common):
  if parameter in common:
    flag = f" (evaluate: --{parameter.replace('_', '-')})"
    hint = f"env.{parameter}=...{flag if parameter == 'data_dir' else ''}"
  else:
    hint = f"env.options={parameter}=..."
  return f"env.name={name} needs {hint}"


def make(name: str, **options: Any) -> types.Env:
  """A fresh environment in this process.

  Args:
    name: A name that `row` knows; the `env` of the tasks that it will play.
    **options: Arguments of the environment's class.

  Raises:
    ValueError: there is no such environment; the nearest name is told.
  """
  return load(row(name).env)(**options)


class Makers(Protocol):
  """Makes environments, and owns what they share."""

  at_once: int | None

  def __call__(self) -> types.Env: ...

  def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class InProcess:
  """Makes environments that live in this process.

  Attributes:
    recipe: How one is made.
    at_once: How many can be played at once; None for no limit.
  """

  recipe: Recipe
  at_once: int | None = None

  def __call__(self) -> types.Env:
    return self.recipe.make()

  def close(self) -> None:
    """Nothing is shared."""
