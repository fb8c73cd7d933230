"""Reads ALFWorld problems: PDDL text to the compact form of a game.

The compact form is a small JSON object from which play is lossless. Receptacles
and objects are listed in the order of their sorted PDDL ids, which is the order
in which the original engine names them in its texts.

  R  [[name, type, location, openable + 2 * opened]]
  O  [[name, type, flags, [receptacle indices], [location indices]]]
  C  {receptacle type: [object types it can hold]}
  A  start location
  G  goal literals with existential variables, all of which must hold
  X  further initial facts, {predicate: [[object index, ...]]}, optional

Bit k of `flags` is set where `FLAGS[k]` holds. Locations count from 0 in the
order of their sorted ids; a receptacle at -1 is nowhere and cannot be reached.

Source: ALFWorld's PDDL domain and the naming of its text environment,
github.com/alfworld/alfworld.
"""

import collections
import re

FLAGS = (
  "pickupable",
  "cleanable",
  "heatable",
  "coolable",
  "toggleable",
  "sliceable",
  "isreceptacleobject",
)
STATES = ("isclean", "ishot", "iscool", "issliced", "istoggled", "ison")

# Kinds of the arguments: a agent, o object, r receptacle, l location, t type.
SIGNATURES = {
  "objecttype": "ot",
  "receptacletype": "rt",
  "inreceptacle": "or",
  "receptacleatlocation": "rl",
  "objectatlocation": "ol",
  "atlocation": "al",
  "cancontain": "tt",
  "holds": "ao",
  "holdsany": "a",
  "openable": "r",
  "opened": "r",
  "inreceptacleobject": "oo",
  **dict.fromkeys(FLAGS, "o"),
  **dict.fromkeys(STATES, "o"),
}
# Facts that no rule of the domain reads.
_IGNORED = {
  "=",
  "checked",
  "distance",
  "examined",
  "full",
  "holdsanyreceptacleobject",
  "isreceptacleobjectfull",
  "moveable",
  "wasinreceptacle",
}
_TOKEN = re.compile(r"[()]|[^\s();]+|;[^\n]*")


def parse_problem(text):
  """Compact form of a PDDL problem of ALFWorld's domain.

  Args:
    text: The problem, such as the content of `initial_state.pddl`.

  Returns:
    The compact form described at the top of this module.

  Raises:
    ValueError: the text is no such problem; the message says what is wrong.
  """
  sections = _sections(text)
  facts = collections.defaultdict(list)
  for fact in sections[":init"]:
    if not fact or not all(isinstance(word, str) for word in fact):
      if fact and fact[0] in _IGNORED:
        continue
      raise ValueError(f"pddl problem: cannot read the initial fact {fact!r}")
    predicate, *arguments = fact
    if predicate in _IGNORED:
      continue
    if len(arguments) != len(SIGNATURES.get(predicate, "")):
      raise ValueError(
        f"pddl problem: unknown initial fact ({' '.join(fact)}); the domain of "
        f"ALFWorld has {', '.join(sorted(SIGNATURES))}"
      )
    facts[predicate].append(arguments)
  if len(sections[":goal"]) != 1:
    raise ValueError("pddl problem: (:goal ...) must hold one condition")
  return _compact(facts, flatten_goal(sections[":goal"][0]))


def _sections(text):
  if not isinstance(text, str):
    raise ValueError(f"pddl problem: expected text, got {type(text).__name__}")
  stack = [[]]
  for token in _TOKEN.findall(text.lower()):
    if token == "(":
      stack.append([])
    elif token == ")":
      if len(stack) == 1:
        raise ValueError("pddl problem: a closing parenthesis too many")
      node = stack.pop()
      stack[-1].append(node)
    elif token[0] != ";":
      stack[-1].append(token)
  if len(stack) > 1:
    raise ValueError(
      f"pddl problem: {len(stack) - 1} parentheses are not closed; is the file "
      "cut short?"
    )
  if len(stack[0]) != 1 or stack[0][0][:1] != ["define"]:
    raise ValueError("pddl problem: expected one (define (problem ...) ...)")
  sections = {s[0]: s[1:] for s in stack[0][0][1:] if s and s[0] != "problem"}
  for name in (":init", ":goal"):
    if name not in sections:
      raise ValueError(f"pddl problem: the section ({name} ...) is missing")
  return sections


def flatten_goal(condition):
  """Goal literals of nested `and` and `exists`, variables made unique.

  Raises:
    ValueError: the goal uses another connective.
  """
  literals, taken = [], set()

  def declare(words, scope):
    scope, pending = dict(scope), []
    words = iter(words)
    for word in words:
      if word != "-":
        pending.append(word)
        continue
      kind = next(words, "")
      for name in pending:
        fresh, count = name, 2
        # There is one agent, so its variables may share a name.
        while fresh in taken and kind != "agent":
          fresh, count = f"{name}{count}", count + 1
        taken.add(fresh)
        scope[name] = fresh
      pending = []
    return scope

  def literal(node, scope):
    if node[0] == "not" and len(node) == 2:
      return ["not", literal(node[1], scope)]
    if not all(isinstance(word, str) for word in node):
      raise ValueError(
        f"pddl problem: the goal uses ({node[0]} ...); only and, exists, not "
        "and the predicates of the domain are understood"
      )
    return [node[0], *(scope.get(word, word) for word in node[1:])]

  def walk(node, scope):
    if not isinstance(node, list) or not node:
      raise ValueError(f"pddl problem: cannot read the goal at {node!r}")
    if node[0] == "and":
      for child in node[1:]:
        walk(child, scope)
    elif node[0] == "exists" and len(node) == 3:
      walk(node[2], declare(node[1], scope))
    else:
      literals.append(literal(node, scope))

  walk(condition, {})
  return literals


def _names(ids):
  """Names of entities: numbers fall as the sorted ids rise."""
  kinds = {}
  for id_ in ids:
    kind = id_.split("_bar_", 1)[0]
    kinds[id_] = kind + "basin" if "basin" in id_ else kind
  left = collections.Counter(kinds.values())
  names = {}
  for id_ in sorted(ids):
    names[id_] = f"{kinds[id_]} {left[kinds[id_]]}"
    left[kinds[id_]] -= 1
  return names


def _type(name):
  return name.removesuffix("type")


def _compact(facts, goal):
  if len(facts["atlocation"]) != 1:
    raise ValueError(
      f"pddl problem: {len(facts['atlocation'])} start locations, expected one"
    )
  if facts["holds"]:
    raise ValueError("pddl problem: the agent must start with empty hands")
  sets = collections.defaultdict(set)
  for predicate, rows in facts.items():
    for row in rows:
      for kind, argument in zip(SIGNATURES[predicate], row, strict=True):
        sets[kind].add(argument)
  names = _names(sets["r"] | sets["o"])
  receptacles, objects, places = (_ranks(sets[kind]) for kind in "rol")
  extra = {
    predicate: [[objects[word] for word in row] for row in rows]
    for predicate in (*STATES, "inreceptacleobject")
    if (rows := facts[predicate])
  }
  contains = collections.defaultdict(set)
  for rtype, otype in facts["cancontain"]:
    contains[_type(rtype)].add(_type(otype))
  game = {
    "R": _receptacle_rows(facts, names, receptacles, places),
    "O": _object_rows(facts, names, receptacles, objects, places),
    "C": {rtype: sorted(held) for rtype, held in sorted(contains.items())},
    "A": places[facts["atlocation"][0][1]],
    "G": goal,
  }
  return game | ({"X": extra} if extra else {})


def _ranks(ids):
  """{id: rank} in sorted order."""
  return {id_: k for k, id_ in enumerate(sorted(ids))}


def _receptacle_rows(facts, names, receptacles, places):
  at, types = dict(facts["receptacleatlocation"]), dict(facts["receptacletype"])
  if len(at) != len({tuple(row) for row in facts["receptacleatlocation"]}):
    raise ValueError("pddl problem: a receptacle has two locations")
  openable = {row[0] for row in facts["openable"]}
  opened = {row[0] for row in facts["opened"]}
  return [
    [
      names[r],
      _type(types.get(r, "")),
      places[at[r]] if r in at else -1,
      (r in openable) + 2 * (r in opened),
    ]
    for r in receptacles
  ]


def _object_rows(facts, names, receptacles, objects, places):
  types = dict(facts["objecttype"])
  bits = dict.fromkeys(objects, 0)
  inside = {o: set() for o in objects}
  around = {o: set() for o in objects}
  for k, flag in enumerate(FLAGS):
    for (o,) in facts[flag]:
      bits[o] |= 1 << k
  for o, r in facts["inreceptacle"]:
    inside[o].add(receptacles[r])
  for o, place in facts["objectatlocation"]:
    around[o].add(places[place])
  return [
    [
      names[o],
      _type(types.get(o, "")),
      bits[o],
      sorted(inside[o]),
      sorted(around[o]),
    ]
    for o in objects
  ]
