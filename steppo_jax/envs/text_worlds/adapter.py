"""What games of other packages share: rewards, ends, splits, errors.

A world of its own is a subclass with two methods. `begin` starts a game and
`play` takes one command; both answer with a `Turn`, which says how much has
been earned so far and not what the last command has earned. What a command
earned is the difference, so that a game which pays as it starts, takes
everything back as it fails, or tells its score at its end pays what it should
in one way.
"""

import contextlib
import importlib
import shutil
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from steppo_jax import types
from steppo_jax.envs import seeds

# Packages end games after so many moves unless they are told otherwise. Limits
# are the loop's: `rollout.max_steps`.
NO_LIMIT = 2**30


class Turn(NamedTuple):
  """What a game says.

  Attributes:
    text: For the agent.
    score: Earned so far; below 0 counts as 0, above 1 as 1.
    over: The game has ended by its rules.
    won: The task is solved.
    truncated: The package has cut the game short.
    invalid: The command was refused.
    commands: What can be answered, in any order; () where it is not known.
    state: Text that identifies the state of the game; None for `text`.
  """

  text: str
  score: float
  over: bool = False
  won: bool = False
  truncated: bool = False
  invalid: bool = False
  commands: Sequence[str] = ()
  state: str | None = None


class TextWorld:
  """An environment (`types.Env`) of a game.

  The reward of a step is what the score has grown by, less `invalid_penalty`
  where the command was refused. A game that fails pays back what it had paid:
  the rewards of an episode add up to its last score less its first. A game that
  is over is not played on, whatever the package would do.

  Args:
    invalid_penalty: Subtracted from the reward of a refused command.
  """

  def __init__(self, invalid_penalty: float = 0.0):
    self._penalty = float(invalid_penalty)
    self._score: float | None = None  # None where no game is under way.

  def begin(self, at: seeds.Place) -> Turn:
    """Starts the game of a seed."""
    raise NotImplementedError

  def play(self, command: str) -> Turn:
    """Takes one command."""
    raise NotImplementedError

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts the game of the task's seed, which says its split too."""
    self._score = None
    turn = self.begin(seeds.place(task.payload.get("seed", seed)))
    return self._answer(turn, first=True)

  def step(self, text: str) -> types.TimeStep:
    """Answers one text.

    Raises:
      RuntimeError: no game is under way.
    """
    if self._score is None:
      raise RuntimeError("no game is under way: call reset(task, seed)")
    return self._answer(self.play(text.strip()))

  def _answer(self, turn: Turn, first: bool = False) -> types.TimeStep:
    score = min(max(float(turn.score), 0.0), 1.0)
    reward = 0.0 if first else score - self._score
    reward -= self._penalty * turn.invalid
    self._score = None if turn.over or turn.truncated else score
    info = {
      "won": bool(turn.won),
      "invalid": bool(turn.invalid),
      "anchor": turn.text if turn.state is None else turn.state,
      "scores": {"score": score},
    }
    if turn.commands:
      # Packages keep them in sets, whose order is another in every process.
      info["commands"] = sorted({str(c) for c in turn.commands})
    return types.TimeStep(
      turn.text, reward, bool(turn.over), bool(turn.truncated), info
    )

  def close(self) -> None:
    """Ends the game."""


def package(name: str, extra: str, *, java: bool = False) -> ModuleType:
  """Imports the package of a game.

  Raises:
    RuntimeError: it is not installed, or Java is not; it says what to do.
  """
  try:
    module = importlib.import_module(name)
  except ImportError as error:
    raise RuntimeError(
      f"env.name={extra} needs the package {name} ({error}): pip install "
      f"'steppo_jax[{extra.replace('_', '-')}]'"
    ) from error
  if java and shutil.which("java") is None:
    raise RuntimeError(
      f"env.name={extra} needs Java 8 or newer, and there is no program java: "
      "install one, such as Debian's default-jre-headless"
    )
  return module


def end_java(env: Any) -> None:
  """Closes an environment that plays in a Java process, and ends the process.

  Its own way is to ask, which a process that hangs does not hear.

  Args:
    env: Of TextWorld-Express or ScienceWorld, which are built alike.
  """
  process = env._gateway.java_process
  process.kill()
  process.wait()
  with contextlib.suppress(Exception):
    env.close()
  for pipe in (process.stdin, process.stdout, process.stderr):
    if pipe is not None:
      with contextlib.suppress(OSError):
        pipe.close()


@contextlib.contextmanager
def ends_java_if_refused(env: Any) -> Iterator[None]:
  """Ends the Java process of an environment whose options are refused."""
  try:
    yield
  except Exception:
    end_java(env)
    raise


def one_of(option: str, value: str, known: Sequence[str]) -> str:
  """The value of an option.

  Raises:
    ValueError: it is none of those known.
  """
  if value not in known:
    raise ValueError(
      f"env.options: {option}={value!r} is none of {', '.join(sorted(known))}"
    )
  return value
