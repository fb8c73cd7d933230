"""What a household is (`World`, never changes) and how it stands (`State`)."""

import bisect
import collections

from steppo_jax.envs.household import goal, pddl

_KEYS = ("R", "O", "C", "A", "G")


class World:
  """One household as the compact form of `pddl` describes it.

  Attributes:
    receptacles: R of the compact form.
    objects: O of the compact form.
    accepts: {receptacle type: set of object types it can hold}.
    start: Start location.
    goal: The win condition, a `goal.Goal`.
    extra: X of the compact form.
    at: {location: indices of the receptacles there, in order}.
    within: {object: objects it was found inside of}.
    num_locations: How many locations there are.

  Raises:
    ValueError: `game` is not the compact form of a game.
  """

  def __init__(self, game):
    missing = [key for key in _KEYS if key not in game]
    if missing:
      raise ValueError(
        f"compact game: the key {missing[0]!r} is missing; expected R, O, C, A "
        "and G"
      )
    try:
      self._load(game)
    except ValueError as error:
      raise ValueError(f"compact game: {error}") from error
    except (TypeError, IndexError, KeyError, AttributeError) as error:
      raise ValueError(
        f"compact game: a record is malformed ({type(error).__name__}: {error})"
      ) from error

  def _load(self, game):
    self.receptacles = [(n, t, int(p), int(b)) for n, t, p, b in game["R"]]
    self.objects = [
      (n, t, int(b), tuple(w), tuple(a)) for n, t, b, w, a in game["O"]
    ]
    self.accepts = {rtype: frozenset(held) for rtype, held in game["C"].items()}
    self.start = int(game["A"])
    self.extra = game.get("X", {})
    self.recep_index = {r[0]: k for k, r in enumerate(self.receptacles)}
    self.object_index = {o[0]: k for k, o in enumerate(self.objects)}
    if len(self.recep_index) + len(self.object_index) < (
      len(self.receptacles) + len(self.objects)
    ):
      raise ValueError("two things have the same name")
    at = collections.defaultdict(list)
    for k, receptacle in enumerate(self.receptacles):
      if receptacle[2] >= 0:
        at[receptacle[2]].append(k)
    self.at = dict(at)
    places = {self.start, *self.at, *(p for o in self.objects for p in o[4])}
    self.num_locations = max(places) + 1
    self.goal = goal.Goal(game["G"], self.receptacles, self.objects, places)
    self.within = collections.defaultdict(set)
    for inner, outer in self.extra.get("inreceptacleobject", ()):
      self.within[inner].add(outer)
    for _, _, _, inside, _ in self.objects:
      if any(not 0 <= k < len(self.receptacles) for k in inside):
        raise ValueError("an object is in no known receptacle")
    self.knives = frozenset(
      k for k, o in enumerate(self.objects) if o[1] in ("knife", "butterknife")
    )
    self.switches = [k for k, o in enumerate(self.objects) if o[2] >> 4 & 1]
    self._goto = {}

  def has(self, thing, flag):
    """Whether a flag of `pddl.FLAGS` holds of an object."""
    return self.objects[thing][2] >> pddl.FLAGS.index(flag) & 1

  def fits(self, thing, receptacle):
    """Whether a receptacle can hold an object."""
    accepted = self.accepts.get(self.receptacles[receptacle][1], ())
    return self.objects[thing][1] in accepted

  def goto_commands(self, place):
    """Sorted `go to` commands that lead away from a location."""
    commands = self._goto.get(place)
    if commands is None:
      commands = self._goto[place] = sorted(
        "go to " + r[0] for r in self.receptacles if r[2] not in (place, -1)
      )
    return commands


class State:
  """How things stand in a world.

  Attributes:
    world: The `World`.
    place: Location of the agent.
    held: Index of the object in hand, -1 if none.
    where: Per object, the set of receptacles that it is in.
    inside: Per receptacle, the sorted list of objects in it.
    opened: Set of open receptacles.
    around: Per object, the set of locations at which it lies.
    removed: Set of (object, receptacle) of which the object was taken out.
    states: {predicate of `pddl.STATES`: set of objects}.
  """

  __slots__ = (
    "around",
    "held",
    "inside",
    "opened",
    "place",
    "removed",
    "states",
    "where",
    "world",
  )

  def __init__(self, world):
    self.world = world
    self.place = world.start
    self.held = -1
    self.where = [set(o[3]) for o in world.objects]
    self.inside = [[] for _ in world.receptacles]
    for k, o in enumerate(world.objects):
      for r in o[3]:
        self.inside[r].append(k)
    self.opened = {k for k, r in enumerate(world.receptacles) if r[3] & 2}
    self.around = [set(o[4]) for o in world.objects]
    self.removed = set()
    self.states = {
      predicate: {row[0] for row in world.extra.get(predicate, ())}
      for predicate in pddl.STATES
    }

  def is_closed(self, receptacle):
    openable = self.world.receptacles[receptacle][3] & 1
    return bool(openable) and receptacle not in self.opened

  def take(self, thing, receptacle):
    """Moves an object from a receptacle into the hand."""
    self.held = thing
    self.where[thing].discard(receptacle)
    self.inside[receptacle].remove(thing)
    self.around[thing].discard(self.place)
    self.removed.add((thing, receptacle))

  def put(self, thing, receptacle):
    """Moves the object in the hand into a receptacle."""
    self.held = -1
    if receptacle not in self.where[thing]:
      bisect.insort(self.inside[receptacle], thing)
    self.where[thing].add(receptacle)
    self.around[thing].add(self.place)
    self.removed.discard((thing, receptacle))

  def save(self):
    """The state as JSON-able data."""
    return {
      "place": self.place,
      "held": self.held,
      "where": [sorted(w) for w in self.where],
      "opened": sorted(self.opened),
      "around": [sorted(a) for a in self.around],
      "removed": sorted(map(list, self.removed)),
      "states": {p: sorted(things) for p, things in self.states.items()},
    }

  @classmethod
  def restored(cls, world, data):
    """The state that `save` returned, in the same world.

    Raises:
      ValueError: the data are not of this world.
    """
    state = cls(world)
    try:
      if len(data["where"]) != len(world.objects):
        raise ValueError("the number of objects differs")
      state.place, state.held = int(data["place"]), int(data["held"])
      state.where = [set(w) for w in data["where"]]
      state.inside = [[] for _ in world.receptacles]
      for k, receptacles in enumerate(state.where):
        for r in receptacles:
          state.inside[r].append(k)
      state.opened = set(data["opened"])
      state.around = [set(a) for a in data["around"]]
      state.removed = {(o, r) for o, r in data["removed"]}
      state.states = {p: set(data["states"][p]) for p in pddl.STATES}
    except (KeyError, TypeError, IndexError, ValueError) as error:
      raise ValueError(
        f"saved state is not of this game ({type(error).__name__}: {error})"
      ) from error
    return state
