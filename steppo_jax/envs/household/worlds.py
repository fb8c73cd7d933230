"""Generates household games: any number of them, from a seed.

Splits: every (split, size, seed) has a random stream of its own, so that no
two share a game. On top of that, about 15 % of all combinations of family,
object type and target receptacle type are held out: `valid_unseen` consists of
games with these, and the other splits never contain one.
"""

import functools
import random

from steppo_jax import types
from steppo_jax.envs import seeds
from steppo_jax.envs.household import env, pddl, tables

FAMILIES = (
  "pick_and_place_simple",
  "look_at_obj_in_light",
  "pick_clean_then_place_in_recep",
  "pick_heat_then_place_in_recep",
  "pick_cool_then_place_in_recep",
  "pick_two_obj_and_place",
)
SPLITS = seeds.SPLITS

# Per size: receptacles, objects, chance that a receptacle shares a location.
SIZES = {
  "tiny": ((4, 5), (3, 5), 0.0),
  "small": ((6, 8), (6, 10), 0.05),
  "medium": ((10, 14), (14, 22), 0.1),
  "full": ((20, 28), (28, 44), 0.15),
}
HELD_OUT_PERCENT = 15

_TEMPLATES = {
  "pick_and_place_simple": ("put a {o} in {r}.", "put some {o} on {r}."),
  "look_at_obj_in_light": (
    "look at {o} under the {r}.",
    "examine the {o} with the {r}.",
  ),
  "pick_clean_then_place_in_recep": (
    "put a clean {o} in {r}.",
    "clean some {o} and put it in {r}.",
  ),
  "pick_heat_then_place_in_recep": (
    "put a hot {o} in {r}.",
    "heat some {o} and put it in {r}.",
  ),
  "pick_cool_then_place_in_recep": (
    "put a cool {o} in {r}.",
    "cool some {o} and put it in {r}.",
  ),
  "pick_two_obj_and_place": (
    "put two {o} in {r}.",
    "find two {o} and put them in {r}.",
  ),
}
# Family: flag and state that the object needs, appliance that gives it.
_TREATMENTS = {
  "pick_clean_then_place_in_recep": ("cleanable", "isclean", "sinkbasin"),
  "pick_heat_then_place_in_recep": ("heatable", "ishot", "microwave"),
  "pick_cool_then_place_in_recep": ("coolable", "iscool", "fridge"),
}


def generate(seed: int, *, split: str, size: str) -> types.Task:
  """One household game, the same for the same arguments on every machine.

  Args:
    seed: Number of the game within its split and size, at least 0.
    split: "train", "valid_seen" or "valid_unseen".
    size: "tiny" (4-5 receptacles), "small" (6-8), "medium" (10-14) or "full"
      (20-28, as in real rooms).

  Returns:
    A task of the environment "household" with its shortest solution's length.

  Raises:
    ValueError: an argument is unknown.
  """
  seeds.check(split, size, SIZES, seed)
  rng = random.Random(seeds.digest("household", split, size, int(seed)))
  family = rng.choice(FAMILIES)
  room = rng.choice(_rooms(family, split == "valid_unseen"))
  otype, target, lamp = rng.choice(
    _combinations(family, split == "valid_unseen")[room]
  )
  build = _Build(rng, room, size)
  build.furnish(family, otype, target, lamp)
  build.scatter(otype)
  game = build.compact(_goal(family, otype, target, lamp))
  words = {"o": otype, "r": lamp or target}
  task = rng.choice(_TEMPLATES[family]).format(**words)
  plan = env.Game.from_compact(game, task, dialect="move").plan()
  return types.Task(
    uid=f"household/{split}/{size}/{family}/{int(seed)}",
    env="household",
    family=family,
    payload={"game": game, "task": task},
    golden_steps=len(plan),
  )


def is_held_out(family: str, otype: str, target: str) -> bool:
  """Whether games with this combination are in `valid_unseen` alone.

  The target of `look_at_obj_in_light` is the receptacle of the lamp.
  """
  return (otype, target) in _held_out(family)


@functools.cache
def _possible(family):
  """All (room, object type, target type, lamp) of a family, sorted."""
  out = []
  for room, holds in sorted(tables.HOLDS.items()):
    if family == "look_at_obj_in_light":
      lamps = tables.LAMPS.get(room, {})
      out += [
        (room, otype, stand, lamp)
        for lamp, stands in sorted(lamps.items())
        for stand in stands
        for otype in tables.objects(room)
      ]
      continue
    flag, _, tool = _TREATMENTS.get(family, ("pickupable", None, None))
    bit = 1 << pddl.FLAGS.index(flag)
    if tool is not None and tool not in holds:
      continue
    for otype in tables.objects(room):
      homes = [r for r, held in sorted(holds.items()) if otype in held]
      if tables.flags(otype) & bit and len(homes) > 1:
        out += [(room, otype, r, None) for r in homes if r != tool]
  return tuple(out)


@functools.cache
def _held_out(family):
  pairs = {(otype, target) for _, otype, target, _ in _possible(family)}
  order = sorted(
    pairs, key=lambda pair: seeds.digest("held out", family, *pair)
  )
  return frozenset(order[: max(1, len(order) * HELD_OUT_PERCENT // 100)])


@functools.cache
def _combinations(family, unseen):
  """{room: [(object type, target type, lamp)]} of one side of the split."""
  held_out, out = _held_out(family), {}
  for room, otype, target, lamp in _possible(family):
    if ((otype, target) in held_out) == unseen:
      out.setdefault(room, []).append((otype, target, lamp))
  return out


@functools.cache
def _rooms(family, unseen):
  return tuple(sorted(_combinations(family, unseen)))


def _goal(family, otype, target, lamp):
  """Goal literals, as the real games of the family have them."""
  kind, place = ["objecttype", "?o", otype + "type"], target + "type"
  inside = ["inreceptacle", "?o", "?r"]
  if family == "look_at_obj_in_light":
    return [
      ["objecttype", "?ot", lamp + "type"],
      ["toggleable", "?ot"],
      ["istoggled", "?ot"],
      ["receptacleatlocation", "?r", "?l"],
      ["atlocation", "?a", "?l"],
      ["inreceptacle", "?ot", "?r"],
      kind,
      ["holds", "?a", "?o"],
    ]
  if family == "pick_and_place_simple":
    return [inside, kind, ["receptacletype", "?r", place]]
  if family == "pick_two_obj_and_place":
    return [
      ["objecttype", "?o1", otype + "type"],
      ["receptacletype", "?r", place],
      ["inreceptacle", "?o1", "?r"],
      ["not", ["=", "?o1", "?o2"]],
      ["objecttype", "?o2", otype + "type"],
      ["receptacletype", "?r", place],
      ["inreceptacle", "?o2", "?r"],
    ]
  flag, state, _ = _TREATMENTS[family]
  return [
    [flag, "?o"],
    kind,
    ["receptacletype", "?r", place],
    [state, "?o"],
    inside,
  ]


class _Build:
  """A room while it is being filled."""

  def __init__(self, rng, room, size):
    self.rng, self.room = rng, room
    counts, objects, self.sharing = SIZES[size]
    self.num_receptacles = rng.randint(*counts)
    self.num_objects = rng.randint(*objects)
    self.holds = tables.HOLDS[room]
    self.receptacles = []  # types
    self.objects = []  # (type, receptacle)

  def furnish(self, family, otype, target, lamp):
    """Chooses the receptacles and lays down what the task is about."""
    rng, table = self.rng, tables.ROOMS[self.room]
    homes = [r for r in sorted(self.holds) if otype in self.holds[r]]
    # Nothing of the task lies where it has to go.
    sources = [r for r in homes if lamp or r != target]
    weights = [table[r][0] for r in sources]
    needed = [target]
    if family in _TREATMENTS:
      needed.append(_TREATMENTS[family][2])
    two = family == "pick_two_obj_and_place"
    picks = rng.choices(sources, weights, k=2 if two else 1)
    needed += [r for r in dict.fromkeys(picks) if r not in needed]
    self.receptacles = list(dict.fromkeys(needed))
    self._fill(table)
    order = lambda r: r.replace("basin", "") + "_"
    self.receptacles.sort(key=order)
    self.sources = set(sources)
    for pick in picks:
      self._lay(otype, {pick})
    if lamp:
      self._lay(lamp, {target})

  def _fill(self, table):
    """Adds receptacles by weight until the room has its number of them."""
    left = {
      r: most - self.receptacles.count(r) for r, (_, most) in table.items()
    }
    while len(self.receptacles) < self.num_receptacles:
      free = [r for r, count in left.items() if count > 0]
      if not free:
        break
      (r,) = self.rng.choices(free, [table[r][0] for r in free])
      left[r] -= 1
      self.receptacles.append(r)

  def _lay(self, otype, kinds):
    places = [k for k, r in enumerate(self.receptacles) if r in kinds]
    self.objects.append((otype, self.rng.choice(places)))

  def scatter(self, otype):
    """Adds further objects: some of the task's type, most of others."""
    rng = self.rng
    if rng.random() < 0.5:
      self._lay(otype, self.sources)
    homes = {
      kind: {r for r in self.receptacles if kind in self.holds[r]}
      for kind in tables.objects(self.room)
      if kind != otype
    }
    kinds = [kind for kind, receptacles in homes.items() if receptacles]
    while kinds and len(self.objects) < self.num_objects:
      kind = rng.choice(kinds)
      copies = rng.choice((1, 1, 2, 2, 3))
      for _ in range(min(copies, self.num_objects - len(self.objects))):
        self._lay(kind, homes[kind])

  def compact(self, goal):
    """The compact form of the room."""
    places = self._places()
    numbers = _Numbers(self.receptacles)
    receptacles = [
      [numbers(r), r, places[k], int(r in tables.OPENABLE)]
      for k, r in enumerate(self.receptacles)
    ]
    self.rng.shuffle(self.objects)
    self.objects.sort(key=lambda row: row[0] + "_")
    numbers = _Numbers([o for o, _ in self.objects])
    objects = [
      [numbers(o), o, tables.flags(o), [r], [places[r]]]
      for o, r in self.objects
    ]
    kinds = sorted(set(self.receptacles))
    return {
      "R": receptacles,
      "O": objects,
      "C": {r: sorted(self.holds[r]) for r in kinds if self.holds[r]},
      "A": max(places) + 1,
      "G": goal,
    }

  def _places(self):
    """A location per receptacle; neighbours of one type may share one."""
    places, count = [], 0
    for k, r in enumerate(self.receptacles):
      alike = k > 0 and self.receptacles[k - 1] == r
      if not (alike and self.rng.random() < 3 * self.sharing):
        count += 1
      places.append(count - 1)
    order = list(range(count))
    self.rng.shuffle(order)
    return [order[p] for p in places]


class _Numbers:
  """Names a sorted list of types; numbers fall, as in the real games."""

  def __init__(self, kinds):
    self.left = {kind: kinds.count(kind) for kind in kinds}

  def __call__(self, kind):
    self.left[kind] -= 1
    return f"{kind} {self.left[kind] + 1}"
