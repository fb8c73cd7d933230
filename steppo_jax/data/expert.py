"""A searching expert for household games, made from the planner."""

import math
import re

import numpy as np

from steppo_jax.envs import household

_THING = re.compile(r"\ba ([a-z]+ \d+)")

# Commands after which the expert thinks again.
_HALTS = ("take ", "use ", "move ", "put ")


class _Search:
  """One episode while it is being played."""

  def __init__(self, game: household.Game, random: np.random.Generator):
    self.game = game
    self.random = random
    self.observations = [game.reset()]
    self.commands: list[str] = []
    self.seen: dict[str, str] = {}  # thing: where
    self.done: set[str] = set()  # things taken or switched on
    self.searched: set[str] = set()  # receptacles

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

  def alike(self, thing: str) -> str | None:
    """A thing of the same kind that was seen and is still there."""
    found = [
      name
      for name in self.seen
      if name.split()[0] == thing.split()[0] and name not in self.done
    ]
    return found[-1] if found else None

  def fetch(self, verb: str, thing: str) -> None:
    """Takes or uses a thing where it was seen."""
    place = self.seen[thing]
    if f"go to {place}" in self.game.admissible_commands:
      self.play(f"go to {place}")
    self.play(f"{verb} {thing}" + f" from {place}" * (verb == "take"))

  def places(self, thing: str) -> list[str]:
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

  def visit(self, place: str) -> None:
    """Goes to a receptacle and looks into it."""
    self.searched.add(place)
    self.play(f"go to {place}")
    if f"open {place}" in self.game.admissible_commands:
      self.play(f"open {place}")


def demonstrate(
  game: household.Game, *, detours: float, random: np.random.Generator
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
    random: draws the visits; not read where `detours` is 0.

  Returns:
    Observations and the commands between them, one fewer. The game is won.

  Raises:
    ValueError: the game cannot be won.
  """
  search = _Search(game, random)
  visits = detours
  if 0 < detours < math.inf:
    visits = int(random.poisson(detours))
  while not game.won:
    plan = game.plan()
    halts = [k for k, c in enumerate(plan) if c.startswith(_HALTS)]
    plan = plan[: halts[0] + 1] if halts else plan
    verb, *words = plan[-1].split()[:3]
    thing = " ".join(words)
    if verb in ("take", "use") and visits and thing not in search.seen:
      if seen := search.alike(thing):
        search.fetch(verb, seen)
        continue
      if places := search.places(thing):
        visits -= 1
        search.visit(str(random.choice(places)))
        continue
    for command in plan:
      search.play(command)
  return search.observations, search.commands
