"""A* search of `planner` for one binding of the goal's variables."""

import heapq
import itertools
import math
from typing import NamedTuple

from steppo_jax.envs.household import rules

TOOLS = {row[2]: row[1] for row in rules.APPLIANCES.values()}
_VERBS = {row[2]: verb for verb, row in rules.APPLIANCES.items()}
_LOST = {row[2]: row[3] for row in rules.APPLIANCES.values()}
_NEEDS = {row[2]: row[0] for row in rules.APPLIANCES.values()}


class Wish(NamedTuple):
  """What a binding asks of one object."""

  states: frozenset
  target: int | None
  held: bool


class Binding(NamedTuple):
  wishes: dict
  place: int | None


class Node(NamedTuple):
  """A state as far as one binding cares.

  Attributes:
    place: Location of the agent.
    held: Object in hand, -1 if none.
    where: Per tracked object, the frozenset of receptacles it is in.
    around: Per tracked object, the frozenset of locations at which it lies.
    opened: Frozenset of open receptacles.
    states: Frozenset of (predicate, object).
  """

  place: int
  held: int
  where: tuple
  around: tuple
  opened: frozenset
  states: frozenset


class Search:
  """A* for one binding."""

  def __init__(self, state, binding):
    world = self.world = state.world
    self.wishes, self.goal_place = binding
    self.slicing = any("issliced" in w.states for w in self.wishes.values())
    things = set(self.wishes) | ({state.held} if state.held >= 0 else set())
    if self.slicing:
      things |= world.knives
    self.things = tuple(sorted(things))
    self.index = {thing: k for k, thing in enumerate(self.things)}
    self.root = Node(
      state.place,
      state.held,
      tuple(frozenset(state.where[t]) for t in self.things),
      tuple(frozenset(state.around[t]) for t in self.things),
      frozenset(state.opened),
      frozenset(
        (p, t) for t in self.things for p, s in state.states.items() if t in s
      ),
    )

  def _closed(self, node, r):
    return self.world.receptacles[r][3] & 1 and r not in node.opened

  def _places(self, receptacles):
    return {self.world.receptacles[r][2] for r in receptacles} - {-1}

  def _tools(self, predicate):
    """Locations where a state is given."""
    rows = self.world.receptacles
    return {r[2] for r in rows if r[1] == TOOLS[predicate] and r[2] >= 0}

  def done(self, node):
    """Whether the binding makes the goal true."""
    for thing, wish in self.wishes.items():
      if wish.held and node.held != thing:
        return False
      where = node.where[self.index[thing]]
      if wish.target is not None and wish.target not in where:
        return False
      if any((p, thing) not in node.states for p in wish.states):
        return False
    return self.goal_place in (None, node.place)

  def bound(self, node):
    """Lower bound on the steps still to be made, inf if it is hopeless."""
    actions, chains, opens, frees = 0, [], set(), False
    for thing, wish in self.wishes.items():
      cost, chain, taken, must_open = self._thing_bound(node, thing, wish)
      actions += cost
      opens |= must_open
      frees |= taken
      if chain:
        chains.append((thing, chain))
    if frees and node.held >= 0 and node.held not in self.wishes:
      # What is in hand must be laid down somewhere first.
      actions += not (self.slicing and node.held in self.world.knives)
    moves = self._moves(node, chains)
    return actions + len(opens) + moves

  def _thing_bound(self, node, thing, wish):
    """Actions, stops, whether it must be taken, receptacles to open."""
    world, k = self.world, self.index[thing]
    where, held = node.where[k], node.held == thing
    missing = [p for p in wish.states if (p, thing) not in node.states]
    applied = [p for p in missing if p in TOOLS]
    away = wish.target is not None and wish.target not in where
    # An object in one receptacle leaves it to be treated and has to return.
    back = wish.target is not None and (
      away or (bool(applied) and not held and len(where) == 1)
    )
    needs_hand = bool(applied) or back or wish.held
    cost, chain, opens = len(missing), [], set()
    if away and not world.fits(thing, wish.target):
      return math.inf, [], False, set()
    if any(not world.has(thing, _NEEDS[p]) for p in applied):
      return math.inf, [], False, set()
    taken = needs_hand and not held
    if taken or ("issliced" in missing and not held):
      if not where and taken:
        return math.inf, [], False, set()
      if taken:
        chain.append(self._places(where))
        cost += 1
        if len(where) == 1 and all(self._closed(node, r) for r in where):
          opens |= where
    if "istoggled" in missing:
      chain.append(self._places(where))
    for predicate in applied:
      tools = self._tools(predicate)
      if not tools:
        return math.inf, [], False, set()
      if len(applied) == 1:
        chain.append(tools)
    if back:
      cost += 1
      chain.append(self._places([wish.target]))
      if away and self._closed(node, wish.target):
        opens.add(wish.target)
    return cost, chain, taken, opens

  def _moves(self, node, chains):
    """Fewest changes of place that visit all stops, each chain in order."""
    orders = list(itertools.permutations(chains))
    if any(thing == node.held for thing, _ in chains):
      # The hand must be empty before another object is fetched.
      orders = [o for o in orders if o[0][0] == node.held]
    best = math.inf
    for order in orders:
      stops = [stop for _, chain in order for stop in chain]
      if self.goal_place is not None:
        stops.append({self.goal_place})
      best = min(best, _walk(node.place, stops))
    return best

  def run(self, limit):
    """A shortest list of steps below `limit`, or None."""
    counter = itertools.count()
    queue = [(self.bound(self.root), 0, next(counter), self.root)]
    cost, parents = {self.root: 0}, {self.root: None}
    while queue:
      estimate, _, _, node = heapq.heappop(queue)
      if estimate >= limit:
        return None
      if self.done(node):
        return _steps(parents, node)
      spent = cost[node] + 1
      for step, following in self._successors(node):
        if spent < cost.get(following, math.inf):
          bound = self.bound(following)
          if bound < math.inf:
            cost[following] = spent
            parents[following] = (node, step)
            entry = (spent + bound, -spent, next(counter), following)
            heapq.heappush(queue, entry)
    return None

  def _successors(self, node):
    here = self.world.at.get(node.place, ())
    yield from self._door_steps(node, here)
    if node.held < 0:
      yield from self._take_steps(node, here)
    else:
      yield from self._hand_steps(node, here)
    for thing, wish in self.wishes.items():
      if "istoggled" in wish.states and ("istoggled", thing) not in node.states:
        where = node.where[self.index[thing]]
        if not where.isdisjoint(here):
          states = node.states | {("istoggled", thing)}
          yield ("use", thing), node._replace(states=states)
    for place in self._destinations(node):
      if place != node.place:
        yield ("go", place), node._replace(place=place)

  def _droppable(self, node):
    """Whether what is in hand may have to be laid down off its target."""
    return node.held >= 0 and (self.slicing or node.held not in self.wishes)

  def _destinations(self, node):
    if self._droppable(node):
      return sorted(self.world.at)
    places = set() if self.goal_place is None else {self.goal_place}
    for where in node.where:
      places |= self._places(where)
    for wish in self.wishes.values():
      if wish.target is not None:
        places |= self._places([wish.target])
      for predicate in wish.states:
        if predicate in TOOLS:
          places |= self._tools(predicate)
    if self.slicing:
      for around in node.around:
        places |= around & self.world.at.keys()
    return sorted(places)

  def _door_steps(self, node, here):
    drop = self._droppable(node)
    for r in here:
      if self._closed(node, r) and (
        any(r in where for where in node.where)
        or any(wish.target == r for wish in self.wishes.values())
        or (drop and self.world.fits(node.held, r))
      ):
        yield ("open", r), node._replace(opened=node.opened | {r})

  def _take_steps(self, node, here):
    for k, thing in enumerate(self.things):
      if not self.world.has(thing, "pickupable"):
        continue
      for r in here:
        if r in node.where[k] and not self._closed(node, r):
          where, around = list(node.where), list(node.around)
          where[k] = where[k] - {r}
          around[k] = around[k] - {node.place}
          yield (
            ("take", thing, r),
            node._replace(held=thing, where=tuple(where), around=tuple(around)),
          )

  def _hand_steps(self, node, here):
    thing, k = node.held, self.index[node.held]
    for r in here:
      if self.world.fits(thing, r) and not self._closed(node, r):
        where, around = list(node.where), list(node.around)
        where[k] = where[k] | {r}
        around[k] = around[k] | {node.place}
        yield (
          ("put", thing, r),
          node._replace(held=-1, where=tuple(where), around=tuple(around)),
        )
    wish = self.wishes.get(thing)
    for predicate in wish.states if wish else ():
      if predicate in TOOLS and self.world.has(thing, _NEEDS[predicate]):
        tool = TOOLS[predicate]
        for r in here:
          if self.world.receptacles[r][1] == tool:
            states = node.states - {(_LOST[predicate], thing)}
            states |= {(predicate, thing)}
            yield (_VERBS[predicate], thing, r), node._replace(states=states)
            break
    if thing in self.world.knives:
      for other, wish in self.wishes.items():
        if "issliced" in wish.states and self._sliceable(node, other):
          states = node.states | {("issliced", other)}
          yield ("slice", other, thing), node._replace(states=states)

  def _sliceable(self, node, thing):
    around = node.around[self.index[thing]]
    return self.world.has(thing, "sliceable") and node.place in around


def _walk(place, stops):
  """Fewest changes of place that visit one place of every stop, in order."""
  costs = {place: 0}
  for stop in stops:
    least = min(costs.values())
    costs = {p: min(least + 1, costs.get(p, math.inf)) for p in stop}
    if not costs:
      return math.inf
  return min(costs.values())


def _steps(parents, node):
  steps = []
  while parents[node] is not None:
    node, step = parents[node]
    steps.append(step)
  return steps[::-1]
