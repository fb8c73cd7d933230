"""Win conditions: goal literals with existential variables, evaluated in play.

A condition holds if some binding of the variables to objects, receptacles and
locations makes all its literals true. Two variables may be bound to the same
thing unless the condition says ["not", ["=", x, y]].
"""

from steppo_jax.envs.household import pddl

# Facts that no command changes; they thin out the candidates once, at loading.
STATIC = frozenset({"objecttype", "receptacletype", "openable", *pddl.FLAGS})


class Goal:
  """A win condition of one world.

  Attributes:
    literals: The condition as given.
    kinds: {variable: "o", "r", "l" or "a"}.
    candidates: {variable: indices that the unchanging literals allow}.
    watches_place: Whether going elsewhere can change the condition.
    watches_doors: Whether opening or closing can change it.

  Raises:
    ValueError: a literal is not understood.
  """

  def __init__(self, literals, receptacles, objects, locations):
    """Takes R and O of the compact form and all location indices."""
    self.literals = literals
    self.kinds = {}
    for literal in literals:
      self._learn_kinds(literal)
    for literal in literals:
      if not all(w in self.kinds or w[:1] != "?" for w in _words(literal)):
        raise ValueError(f"goal literal {literal!r} has an unbound variable")
    everything = {
      "o": range(len(objects)),
      "r": range(len(receptacles)),
      "l": sorted(locations),
      "a": (0,),
    }
    self.candidates = {v: set(everything[k]) for v, k in self.kinds.items()}
    dynamic = []
    for literal in literals:
      if literal[0] in STATIC:
        self._thin(literal, receptacles, objects)
      else:
        dynamic.append(literal)
    predicates = {_predicate(literal) for literal in dynamic}
    self.watches_place = bool(predicates & {"atlocation"})
    self.watches_doors = "opened" in predicates
    self._plan = self._order(dynamic)

  def _learn_kinds(self, literal):
    if literal[0] == "not":
      return self._learn_kinds(literal[1])
    predicate, *words = literal
    if predicate == "=":
      return None  # Says nothing of kinds; other literals must.
    signature = pddl.SIGNATURES.get(predicate)
    if signature is None or len(signature) != len(words):
      raise ValueError(f"goal literal {literal!r} is not understood")
    for word, kind in zip(words, signature, strict=True):
      if kind == "t":
        continue
      if not word.startswith("?"):
        raise ValueError(
          f"goal literal {literal!r} names {word!r}; only "
          "variables such as ?o are understood"
        )
      if self.kinds.setdefault(word, kind) != kind:
        raise ValueError(f"goal variable {word!r} is used as two kinds")
    return None

  def _thin(self, literal, receptacles, objects):
    predicate, variable = literal[0], literal[1]
    if predicate in ("objecttype", "receptacletype"):
      rows = objects if predicate == "objecttype" else receptacles
      wanted = literal[2].removesuffix("type")
      holds = lambda k: rows[k][1] == wanted
    elif predicate == "openable":
      holds = lambda k: receptacles[k][3] & 1
    else:
      bit = 1 << pddl.FLAGS.index(predicate)
      holds = lambda k: objects[k][2] & bit
    kept = {k for k in self.candidates[variable] if holds(k)}
    self.candidates[variable] = kept

  def _order(self, dynamic):
    """Variables in binding order, each with the literals it completes."""
    order = sorted(self.kinds, key=lambda v: "aorl".index(self.kinds[v]))
    plan, bound = [], set()
    for variable in order:
      bound.add(variable)
      tests = [
        literal
        for literal in dynamic
        if variable in _words(literal) and set(_words(literal)) <= bound
      ]
      # An object already bound says which receptacles come into question.
      source = next(
        (
          literal[1]
          for literal in tests
          if literal[0] == "inreceptacle" and literal[2] == variable
        ),
        None,
      )
      plan.append((variable, self.candidates[variable], source, tests))
    return plan

  def holds(self, state):
    """Whether the condition holds in a `household.State`."""
    return self._search(state, 0, {})

  def _search(self, state, depth, binding):
    if depth == len(self._plan):
      return True
    variable, candidates, source, tests = self._plan[depth]
    if source is not None:
      candidates = candidates & state.where[binding[source]]
    for value in candidates:
      binding[variable] = value
      if all(_test(state, literal, binding) for literal in tests) and (
        self._search(state, depth + 1, binding)
      ):
        return True
    return False


def _predicate(literal):
  return _predicate(literal[1]) if literal[0] == "not" else literal[0]


def _words(literal):
  return _words(literal[1]) if literal[0] == "not" else literal[1:]


def _test(state, literal, binding):
  predicate = literal[0]
  if predicate == "not":
    return not _test(state, literal[1], binding)
  first = binding[literal[1]]
  second = binding[literal[2]] if len(literal) > 2 else None
  if predicate == "inreceptacle":
    return second in state.where[first]
  if predicate == "=":
    return first == second
  if predicate == "holds":
    return state.held == second
  if predicate == "atlocation":
    return state.place == second
  if predicate == "receptacleatlocation":
    return state.world.receptacles[first][2] == second
  if predicate == "opened":
    return first in state.opened
  if predicate == "objectatlocation":
    return second in state.around[first]
  if predicate == "holdsany":
    return state.held >= 0
  if predicate == "inreceptacleobject":
    return second in state.world.within.get(first, ())
  return first in state.states[predicate]
