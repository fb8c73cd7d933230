"""The rules of the household engine: what each command does and says.

Every rule takes the state, what follows the verb, and the dialect. It changes
the state and returns what the engine says, or returns None where the command
is not admissible.

Source: ALFWorld's PDDL domain, github.com/alfworld/alfworld. Two of its traits
surprise: heating, cooling, cleaning and switching need no open door, and
`examine` of an object works in the hand only.
"""

from steppo_jax.envs.household import pddl, text

# Verb: flag that the object needs, type of the receptacle, state that the
# object gains, state that it loses.
APPLIANCES = {
  "clean": ("cleanable", "sinkbasin", "isclean", None),
  "heat": ("heatable", "microwave", "ishot", "iscool"),
  "cool": ("coolable", "fridge", "iscool", "ishot"),
}


def play(state, command, dialect):
  """Plays a command, already stripped; None if it is not admissible."""
  verb, _, rest = command.partition(" ")
  rule = _RULES[dialect].get(verb)
  return rule(state, rest, dialect) if rule else None


def intro(state):
  """The room as the first observation shows it."""
  receptacles = state.world.receptacles
  return _look(state, [k for k, r in enumerate(receptacles) if r[2] >= 0])


def examine_receptacle(state, r):
  """What looking at a receptacle shows."""
  name, _, _, bits = state.world.receptacles[r]
  if bits & 1 and r not in state.opened:
    return f"The {name} is closed."
  objects = state.world.objects
  seen = text.things([objects[k][0] for k in state.inside[r]])
  if bits & 1:
    return f"The {name} is open. In it, you see {seen}."
  return f"On the {name}, you see {seen}."


def examine_object(state, thing):
  """What looking at an object shows."""
  world, states = state.world, state.states
  name = world.objects[thing][0]
  if world.has(thing, "isreceptacleobject"):
    inner = sorted(k for k in world.within if thing in world.within[k])
    names = [world.objects[k][0] for k in inner]
    seen = text.things(names)
    return f"This is a normal {name}. In it, you see {seen}."
  holds = {predicate for predicate in states if thing in states[predicate]}
  holds |= {flag for flag in pddl.FLAGS if world.has(thing, flag)}
  return text.describe(name, holds)


def _look(state, room):
  """What looking around shows; `room` is listed away from receptacles."""
  world = state.world
  here = world.at.get(state.place, ())
  if not here:
    names = [world.receptacles[r][0] for r in room]
    return (
      "You are in the middle of a room. Looking quickly around you, you see "
      f"{text.things(names)}."
    )
  # Beside a receptacle lies what was taken out of it and is still here.
  beside = [
    world.objects[thing][0]
    for thing, r in sorted(state.removed)
    if r in here and state.place in state.around[thing]
  ]
  facing = text.listing([world.receptacles[r][0] for r in here])
  seen = text.things(beside)
  return f"You are facing the {facing}. Next to it, you see {seen}."


def _reachable(state, name):
  """Index of a receptacle here, -1 if there is none of that name."""
  r = state.world.recep_index.get(name, -1)
  if r >= 0 and state.world.receptacles[r][2] == state.place:
    return r
  return -1


def _is_holding(state, name):
  return state.world.object_index.get(name, -2) == state.held


def _play_look(state, rest, dialect):
  return None if rest else _look(state, ())


def _play_inventory(state, rest, dialect):
  if rest:
    return None
  if state.held < 0:
    return "You are not carrying anything."
  return f"You are carrying: a {state.world.objects[state.held][0]}."


def _play_help(state, rest, dialect):
  return None if rest else text.HELP


def _play_go(state, rest, dialect):
  if not rest.startswith("to "):
    return None
  world = state.world
  r = world.recep_index.get(rest[3:], -1)
  if r < 0 or world.receptacles[r][2] in (state.place, -1):
    return None
  place = state.place = world.receptacles[r][2]
  name = world.receptacles[r][0]
  if dialect == "put":
    name = f"loc {world.num_locations - place}"
  return f"You arrive at {name}. {examine_receptacle(state, r)}"


def _play_open(state, rest, dialect):
  r = _reachable(state, rest)
  if r < 0 or not state.is_closed(r):
    return None
  state.opened.add(r)
  return f"You open the {rest}. {examine_receptacle(state, r)}"


def _play_close(state, rest, dialect):
  r = _reachable(state, rest)
  if r not in state.opened or not state.world.receptacles[r][3] & 1:
    return None
  state.opened.discard(r)
  return f"You close the {rest}."


def _play_take(state, rest, dialect):
  name, _, source = rest.partition(" from ")
  r = _reachable(state, source)
  thing = state.world.object_index.get(name, -1)
  if r < 0 or thing < 0 or state.held >= 0 or state.is_closed(r):
    return None
  if r not in state.where[thing] or not state.world.objects[thing][2] & 1:
    return None
  state.take(thing, r)
  return f"You pick up the {name} from the {source}."


def _put(state, name, target):
  r = _reachable(state, target)
  if r < 0 or not _is_holding(state, name) or state.is_closed(r):
    return False
  if not state.world.fits(state.held, r):
    return False
  state.put(state.held, r)
  return True


def _play_move(state, rest, dialect):
  name, _, target = rest.partition(" to ")
  if not _put(state, name, target):
    return None
  return f"You move the {name} to the {target}."


def _play_put(state, rest, dialect):
  name, _, target = rest.partition(" in/on ")
  if not _put(state, name, target):
    return None
  return f"You put the {name} in/on the {target}."


def _appliance_rule(verb):
  flag, tool, gained, lost = APPLIANCES[verb]

  def rule(state, rest, dialect):
    name, _, appliance = rest.partition(" with ")
    r = _reachable(state, appliance)
    if r < 0 or not _is_holding(state, name):
      return None
    world, thing = state.world, state.held
    if world.receptacles[r][1] != tool or not world.has(thing, flag):
      return None
    state.states[gained].add(thing)
    if lost:
      state.states[lost].discard(thing)
    return f"You {verb} the {name} using the {appliance}."

  return rule


def _play_slice(state, rest, dialect):
  name, _, knife = rest.partition(" with ")
  thing = state.world.object_index.get(name, -1)
  if thing < 0 or not _is_holding(state, knife):
    return None
  if not can_slice(state, thing):
    return None
  state.states["issliced"].add(thing)
  return f"You sliced the {name} with the {knife}."


def can_slice(state, thing):
  """Whether the knife in hand reaches an object that can be sliced."""
  return (
    state.held in state.world.knives
    and state.world.has(thing, "sliceable")
    and state.place in state.around[thing]
  )


def can_use(state, thing):
  """Whether an object is a switch in a receptacle here."""
  return state.world.has(thing, "toggleable") and any(
    r in state.where[thing] for r in state.world.at.get(state.place, ())
  )


def _play_use(state, rest, dialect):
  thing = state.world.object_index.get(rest, -1)
  if thing < 0 or not can_use(state, thing):
    return None
  state.states["istoggled"].add(thing)
  state.states["ison"] ^= {thing}
  return f"You turn on the {rest}."


def _play_examine(state, rest, dialect):
  r = _reachable(state, rest)
  if r >= 0:
    return examine_receptacle(state, r)
  return examine_object(state, state.held) if _is_holding(state, rest) else None


_COMMON = {
  "look": _play_look,
  "inventory": _play_inventory,
  "go": _play_go,
  "open": _play_open,
  "close": _play_close,
  "take": _play_take,
  "use": _play_use,
  "slice": _play_slice,
  "examine": _play_examine,
  **{verb: _appliance_rule(verb) for verb in APPLIANCES},
}
_RULES = {
  "move": {**_COMMON, "move": _play_move, "help": _play_help},
  "put": {**_COMMON, "put": _play_put},
}
DIALECTS = tuple(_RULES)


def commands(state, dialect):
  """Sorted list of all admissible commands.

  Verbs differ in their first letters, so the groups are sorted one by one and
  appended in the order of their verbs.
  """
  world, held = state.world, state.held
  here = world.at.get(state.place, ())
  names = sorted(world.receptacles[r][0] for r in here)
  openable = [r for r in here if world.receptacles[r][3] & 1]
  opened = [r for r in openable if r in state.opened]
  closed = [r for r in openable if r not in state.opened]
  hand = world.objects[held][0] if held >= 0 else None
  applied = {verb: [] for verb in APPLIANCES}
  if hand:
    for verb, (flag, tool, _, _) in APPLIANCES.items():
      if world.has(held, flag):
        applied[verb] = sorted(
          f"{verb} {hand} with {world.receptacles[r][0]}"
          for r in here
          if world.receptacles[r][1] == tool
        )
  out = list(applied["clean"])
  out += sorted("close " + world.receptacles[r][0] for r in opened)
  out += applied["cool"]
  out += sorted("examine " + n for n in ([*names, hand] if hand else names))
  out += world.goto_commands(state.place)
  out += applied["heat"]
  if dialect == "move":
    out += ("help", "inventory", "look")
  else:
    out += ("inventory", "look")
  put = _put_commands(state, here, hand, dialect)
  opens = sorted("open " + world.receptacles[r][0] for r in closed)
  out += put + opens if dialect == "move" else opens + put
  out += _slice_commands(state, hand)
  out += _take_commands(state, here)
  out += _use_commands(state, here)
  return out


def _put_commands(state, here, hand, dialect):
  if not hand:
    return []
  verb, word = ("move", "to") if dialect == "move" else ("put", "in/on")
  return sorted(
    f"{verb} {hand} {word} {state.world.receptacles[r][0]}"
    for r in here
    if state.world.fits(state.held, r) and not state.is_closed(r)
  )


def _slice_commands(state, hand):
  if state.held not in state.world.knives:
    return []
  return sorted(
    f"slice {o[0]} with {hand}"
    for k, o in enumerate(state.world.objects)
    if can_slice(state, k)
  )


def _take_commands(state, here):
  if state.held >= 0:
    return []
  objects = state.world.objects
  out = []
  for r in here:
    if state.inside[r] and not state.is_closed(r):
      name = state.world.receptacles[r][0]
      out += [
        f"take {objects[k][0]} from {name}"
        for k in state.inside[r]
        if objects[k][2] & 1
      ]
  out.sort()
  return out


def _use_commands(state, here):
  switches = state.world.switches
  return sorted(
    "use " + state.world.objects[k][0]
    for k in switches
    if not state.where[k].isdisjoint(here)
  )
