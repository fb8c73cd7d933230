"""ALFWorld's household games in plain Python, and their environment.

The engine gives the texts, the commands and the win flag of the original text
engine (ALFWorld 0.4.2 on TextWorld 1.7.0) and of its older data. It has no
global state: games in different threads do not touch each other.
"""

from collections.abc import Mapping
from typing import Any

from steppo_jax import types
from steppo_jax.envs.household import pddl, planner, rules
from steppo_jax.envs.household import state as household_state
from steppo_jax.envs.household import text as household_text

DIALECTS = rules.DIALECTS


class Game:
  """One household game.

  Attributes:
    world: The household; it never changes.
    state: How it stands.
    dialect: "move" for ALFWorld 0.4, "put" for the data released before it:
      there `put O in/on R` stands for `move O to R`, arriving names the
      location instead of the receptacle, and `help` is not a command.

  Source: the rules of ALFWorld's PDDL domain, github.com/alfworld/alfworld.
  """

  def __init__(self, world, task_text, *, dialect):
    if dialect not in DIALECTS:
      raise ValueError(
        f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}"
      )
    self.world = world
    self.dialect = dialect
    self._task_text = task_text
    self.reset()

  @classmethod
  def from_pddl(cls, problem_text: str, task_text: str, *, dialect: str):
    """A game from a PDDL problem of ALFWorld.

    Args:
      problem_text: The problem, such as `pddl_problem` of `game.tw-pddl`.
      task_text: What the player is asked to do.
      dialect: "move" or "put".

    Raises:
      ValueError: the text is not such a problem, or the dialect is unknown.
    """
    compact = pddl.parse_problem(problem_text)
    return cls.from_compact(compact, task_text, dialect=dialect)

  @classmethod
  def from_compact(
    cls, game: Mapping[str, Any], task_text: str, *, dialect: str
  ):
    """A game from the compact form described in `household.pddl`.

    Raises:
      ValueError: the form is broken, or the dialect is unknown.
    """
    return cls(household_state.World(game), task_text, dialect=dialect)

  def reset(self) -> str:
    """Starts over and returns the first observation."""
    self._set_state(household_state.State(self.world))
    room = rules.intro(self.state)
    task = f"Your task is to: {self._task_text}"
    return f"{household_text.WELCOME}\n\n{room}\n\n{task}"

  def step(self, command: str) -> str:
    """Plays one command and returns the observation.

    A command that is not admissible says "Nothing happens." Outer white space
    is cut off; nothing else is forgiven.
    """
    answer = self.play(command)
    return household_text.NOTHING if answer is None else answer

  def play(self, command: str) -> str | None:
    """Like `step`, but None for a command that is not admissible."""
    answer = rules.play(self.state, command.strip(), self.dialect)
    if answer is not None:
      self._commands = None
      self._won = None
    return answer

  @property
  def won(self) -> bool:
    """Whether the win condition holds now."""
    if self._won is None:
      self._won = self.world.goal.holds(self.state)
    return self._won

  @property
  def admissible_commands(self) -> list[str]:
    """Sorted list of the commands that are admissible now."""
    if self._commands is None:
      self._commands = rules.commands(self.state, self.dialect)
    return list(self._commands)

  def plan(self) -> list[str]:
    """A shortest list of commands that wins from here, [] if won.

    Raises:
      ValueError: the game cannot be won from here.
    """
    try:
      return planner.plan(self.state, self.dialect)
    except ValueError as error:
      raise ValueError(f"game {self._task_text!r}: {error}") from error

  def save(self) -> dict[str, Any]:
    """The state as JSON-able data; the game itself is not in it."""
    return self.state.save()

  def restore(self, data: Mapping[str, Any]) -> None:
    """Takes up a state that `save` of the same game returned.

    Raises:
      ValueError: the data are not of this game.
    """
    self._set_state(household_state.State.restored(self.world, data))

  def anchor(self) -> str:
    """Canonical text of the state as far as the player can see it.

    Where the agent stands, what it holds and in which state, what is seen in
    the receptacles here, and which lamps are on.
    """
    state, world = self.state, self.world
    here = world.at.get(state.place, ())
    parts = [
      f"at {household_text.listing([world.receptacles[r][0] for r in here])}"
    ]
    if state.held >= 0:
      held = rules.examine_object(state, state.held)
      states = sorted(p for p, s in state.states.items() if state.held in s)
      parts.append(" ".join(["holding:", held, *states]))
    parts.extend(rules.examine_receptacle(state, r) for r in here)
    used = sorted(state.states["istoggled"])
    if used:
      parts.append("used " + ", ".join(world.objects[k][0] for k in used))
    return " | ".join(parts)

  def _set_state(self, state):
    self.state = state
    self._commands = None
    self._won = None


def golden_steps(task: types.Task) -> int:
  """Length of a shortest solution in steps, computed if the task has none.

  Raises:
    ValueError: the game cannot be won; the message names the task.
  """
  if task.golden_steps is not None:
    return task.golden_steps
  env = HouseholdEnv()
  env.reset(task, 0)
  try:
    return len(env.game.plan())
  except ValueError as error:
    raise ValueError(f"task {task.uid}: {error}") from error


class HouseholdEnv:
  """Household games as a `types.Env`.

  A step that wins has reward 1 and terminates, any other has reward 0. A
  command that is not admissible changes nothing and costs `invalid_penalty`.
  Limits on the number of steps are the caller's.

  Args:
    invalid_penalty: Subtracted from the reward of a command that is not
      admissible, at least 0.
    dialect: "move" or "put", see `Game`.
    scratchpad: An answer has to begin with "<think>", and its command is what
      follows the first "</think>"; any other answer is refused.

  Raises:
    ValueError: an argument is out of range.
  """

  def __init__(
    self,
    *,
    invalid_penalty: float = 0.0,
    dialect: str = "move",
    scratchpad: bool = False,
  ):
    if not invalid_penalty >= 0.0:
      raise ValueError(
        f"invalid_penalty must be at least 0, got {invalid_penalty}"
      )
    if dialect not in DIALECTS:
      raise ValueError(
        f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}"
      )
    self._penalty = float(invalid_penalty)
    self._dialect = dialect
    self._scratchpad = scratchpad
    self._payload = None
    self.game: Game | None = None

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task; the games have no chance in them, so `seed` is not read.

    Raises:
      ValueError: the task is not a household game; the message names it.
    """
    del seed
    self._load(task.uid, task.payload)
    return self._time_step(self.game.reset(), 0.0, invalid=False)

  def _load(self, name, payload):
    if self.game is not None and payload is self._payload:
      return
    try:
      self.game = Game.from_compact(
        payload["game"], payload["task"], dialect=self._dialect
      )
    except (KeyError, TypeError) as error:
      raise ValueError(
        f"task {name}: a household payload needs 'game' and 'task' ({error})"
      ) from error
    except ValueError as error:
      raise ValueError(f"task {name}: {error}") from error
    self._payload = payload

  def step(self, text: str) -> types.TimeStep:
    """Plays one command.

    Raises:
      RuntimeError: no task was started.
    """
    if self.game is None:
      raise RuntimeError("call reset(task, seed) before step")
    command = text
    if self._scratchpad:
      command = _after_thought(text)
    answer = None if command is None else self.game.play(command)
    if answer is None:
      return self._time_step(
        household_text.NOTHING, -self._penalty, invalid=True
      )
    return self._time_step(answer, float(self.game.won), invalid=False)

  def _time_step(self, observation, reward, *, invalid):
    won = self.game.won
    info = {
      "won": won,
      "invalid": invalid,
      "anchor": self.game.anchor(),
      "commands": self.game.admissible_commands,
    }
    return types.TimeStep(observation, reward, won, False, info)

  @property
  def admissible_commands(self) -> list[str]:
    """Sorted list of the commands that are admissible now."""
    return self.game.admissible_commands

  def close(self) -> None:
    """Forgets the game."""
    self.game = None
    self._payload = None


def _after_thought(text: str) -> str | None:
  """The command behind a thought, None without a thought that has an end."""
  opened, _, rest = text.partition(household_text.THOUGHT)
  _, closed, command = rest.partition(household_text.THOUGHT_END)
  return None if opened.strip() or not closed else command.strip()
