"""A shortest plan for any household game, from any of its states.

A plan wins if, at its end, some binding of the goal's variables makes the goal
true. So the planner gives every binding a lower bound on its cost, and runs an
A* search for one binding after the other in the order of the bounds, until no
bound is below the best plan found. Within one binding only the bound objects,
knives and what is in hand matter, so the searches are small.
"""

import itertools
import math

from steppo_jax.envs.household import goal as household_goal
from steppo_jax.envs.household import search as household_search

_UNDERSTOOD = {
  *household_search.TOOLS,
  "inreceptacle",
  "issliced",
  "istoggled",
  "holds",
  "atlocation",
  "receptacleatlocation",
}


def plan(state, dialect):
  """A shortest list of commands that wins from `state`, [] if it has won.

  Args:
    state: A `state.State`; it is not changed.
    dialect: "move" or "put".

  Raises:
    ValueError: no sequence of commands wins, or the goal has a literal that
      the planner does not understand.
  """
  if state.world.goal.holds(state):
    return []
  jobs = []
  for count, binding in enumerate(_bindings(state.world)):
    search = household_search.Search(state, binding)
    bound = search.bound(search.root)
    if bound < math.inf:
      jobs.append((bound, count, search))
  jobs.sort(key=lambda job: job[:2])
  best, best_cost = None, math.inf
  for bound, _, search in jobs:
    if bound >= best_cost:
      break
    found = search.run(best_cost)
    if found is not None:
      best, best_cost = found, len(found)
  if best is None:
    raise ValueError("no sequence of commands wins from here")
  return _commands(state.world, best, dialect)


def _bindings(world):
  """All bindings of the goal's objects and receptacles."""
  goal = world.goal
  literals, unequal = [], []
  for literal in goal.literals:
    if literal[0] == "not" and literal[1][0] == "=":
      unequal.append(literal[1][1:])
    elif literal[0] in _UNDERSTOOD:
      literals.append(literal)
    elif literal[0] == "not" or literal[0] not in household_goal.STATIC:
      raise ValueError(f"the planner does not understand {literal!r}")
  names = [v for v, kind in goal.kinds.items() if kind in "or"]
  choices = [sorted(goal.candidates[v]) for v in names]
  for values in itertools.product(*choices):
    binding = dict(zip(names, values, strict=True))
    if all(binding[a] != binding[b] for a, b in unequal):
      bound = _bind(world, literals, binding)
      if bound is not None:
        yield bound


def _bind(world, literals, binding):
  wishes, place, stations = {}, None, []
  for literal in literals:
    predicate = literal[0]
    if predicate == "receptacleatlocation":
      stations.append(binding[literal[1]])
    if predicate in ("receptacleatlocation", "atlocation"):
      continue
    thing = binding[literal[2] if predicate == "holds" else literal[1]]
    wish = wishes.get(thing, household_search.Wish(frozenset(), None, False))
    if predicate == "holds":
      wish = wish._replace(held=True)
    elif predicate == "inreceptacle":
      if wish.target not in (None, binding[literal[2]]):
        return None
      wish = wish._replace(target=binding[literal[2]])
    else:
      wish = wish._replace(states=wish.states | {predicate})
    wishes[thing] = wish
  places = {world.receptacles[r][2] for r in stations}
  if len(places) > 1 or sum(wish.held for wish in wishes.values()) > 1:
    return None
  place = places.pop() if places else None
  return household_search.Binding(wishes, place)


def _commands(world, steps, dialect):
  """Steps as commands; `go to` names the receptacle that is used there."""
  commands, used = [], None
  for step in reversed(steps):
    if step[0] == "go":
      here = world.at[step[1]]
      r = used if used in here else here[0]
      commands.append(f"go to {world.receptacles[r][0]}")
      used = None
    else:
      commands.append(_command(world, step, dialect))
      if step[0] not in ("use", "slice"):
        used = step[-1]
  return commands[::-1]


def _command(world, step, dialect):
  verb, first, *rest = step
  if verb == "open":
    return f"open {world.receptacles[first][0]}"
  name = world.objects[first][0]
  if verb == "use":
    return f"use {name}"
  if verb == "slice":
    return f"slice {name} with {world.objects[rest[0]][0]}"
  target = world.receptacles[rest[0]][0]
  if verb == "take":
    return f"take {name} from {target}"
  if verb == "put":
    joined = ("move", "to") if dialect == "move" else ("put", "in/on")
    return f"{joined[0]} {name} {joined[1]} {target}"
  return f"{verb} {name} with {target}"
