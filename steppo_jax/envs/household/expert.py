"""A searching expert for household games, made from the planner."""

import math
import re

import numpy as np

from steppo_jax import types
from steppo_jax.envs import experts
from steppo_jax.envs.household import env, scratchpad, worlds

DIALECT = "move"

_THOUGHTS = {"long": scratchpad.thought, "brief": scratchpad.brief_thought}
_THING = re.compile(r"\ba ([a-z]+ \d+)")

# Commands after which the expert thinks again.
_HALTS = ("take ", "use ", "move ", "put ")


class _Search:
  """One episode while it is being played."""

  def __init__(
    self, game: env.Game, visits: float, random: np.random.Generator
  ):
    self.game = game
    self.visits = visits
    self.random = random
    self.observations = [game.reset()]
    self.commands: list[str] = []
    self.seen: dict[str, str] = {}  # thing: where
    self.done: set[str] = set()  # things taken or switched on
    self.searched: set[str] = set()  # receptacles
    self.looking: str | None = None  # receptacle that is being searched

  def play(self, command: str) -> None:
    """Plays one command and notes what is seen, and where."""
    self.commands.append(command)
    self.observations.append(self.game.step(command))
    verb, _, rest = command.partition(" ")
    if verb in ("go", "open"):
      place = rest.removeprefix("to ")
      things = _THING.findall(self.observations[-1])
      self.seen.update(dict.fromkeys(things, place))
    elif verb in ("take", "use"):
      self.done.add(" ".join(rest.split()[:2]))

  def intend(self) -> str:
    """The expert's next command."""
    look = f"open {self.looking}"
    self.looking = None
    if look in self.game.admissible_commands:
      return look
    plan = self.game.plan()
    halt = next((c for c in plan if c.startswith(_HALTS)), plan[-1])
    verb, *words = halt.split()[:3]
    thing = " ".join(words)
    if verb in ("take", "use") and self.visits and thing not in self.seen:
      if seen := self._alike(thing):
        return self._fetch(verb, seen)
      if places := self._places(thing):
        return self._visit(str(self.random.choice(places)))
    return plan[0]

  def _alike(self, thing: str) -> str | None:
    """A thing of the same kind that was seen and is still there."""
    found = [
      name
      for name in self.seen
      if name.split()[0] == thing.split()[0] and name not in self.done
    ]
    return found[-1] if found else None

  def _fetch(self, verb: str, thing: str) -> str:
    """Goes where a thing was seen, and there takes or uses it."""
    place = self.seen[thing]
    act = f"{verb} {thing}" + f" from {place}" * (verb == "take")
    ways = (f"go to {place}", f"open {place}", act)
    return next(c for c in ways if c in self.game.admissible_commands)

  def _places(self, thing: str) -> list[str]:
    """Receptacles not searched yet that could hold a thing."""
    world = self.game.world
    left = [
      (name, kind)
      for name, kind, place, _ in world.receptacles
      if name not in self.searched and place != self.game.state.place
    ]
    kind = thing.split()[0]
    likely = [name for name, r in left if kind in world.accepts.get(r, ())]
    return likely or [name for name, _ in left]

  def _visit(self, place: str) -> str:
    """Goes to a receptacle, to look into it."""
    self.visits -= 1
    self.searched.add(place)
    self.looking = place
    return f"go to {place}"


def demonstrate(
  game: env.Game,
  *,
  detours: float,
  noise: float,
  random: np.random.Generator,
) -> tuple[list[str], list[str]]:
  """Plays a game as someone does who first has to find things.

  The planner knows where everything is. The expert follows it, but what its
  next plan takes or switches on and has not been seen yet is searched for:
  receptacles that could hold it are visited at random, and opened, until it or
  another of its kind is seen. A Poisson number of visits, mean `detours`, is
  spent so; then the planner's knowledge is used. With `math.inf` it never is.

  Args:
    game: the game; it is reset first.
    detours: mean limit on the visits, at least 0; 0 gives a shortest plan.
    noise: chance in [0, 1) that a command is drawn from the admissible ones
      instead, all alike. The expert goes on from where that leads.
    random: draws the visits and the noise.

  Returns:
    Observations and the commands between them, one fewer. The game is won.

  Raises:
    ValueError: the game cannot be won.
  """
  visits = detours
  if 0 < detours < math.inf:
    visits = int(random.poisson(detours))
  search = _Search(game, visits, random)
  while not game.won:
    if noise and random.random() < noise:
      search.play(str(random.choice(game.admissible_commands)))
    else:
      search.play(search.intend())
  return search.observations, search.commands


def show(
  task: types.Task,
  *,
  detours: float,
  noise: float,
  random: np.random.Generator,
  thoughts: str | None,
) -> experts.Played:
  """A household game, won by `demonstrate`.

  `thoughts` before the commands are None, "long" or "brief".
  """
  game = env.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect=DIALECT
  )
  observations, commands = demonstrate(
    game, detours=detours, noise=noise, random=random
  )
  rewards = [0.0] * (len(commands) - 1) + [1.0]
  game.reset()
  possible = [game.admissible_commands]
  for command in commands:
    game.step(command)
    possible.append(game.admissible_commands)
  if thoughts:
    commands = scratchpad.write(
      observations, commands, random, _THOUGHTS[thoughts]
    )
  return experts.Played(observations, commands, rewards, possible)


EXPERT = experts.Expert(worlds, show=show, text="task")
