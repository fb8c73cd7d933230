"""Generates queries for papers, each with a small library of its own.

A query asks for the papers that use a method for a problem. Some of them say so
in their titles, where a search finds them; the others have titles that tell
nothing, and are found by following citations.

    search   all of them say so
    expand   half of them are one citation away from those
    chain    one says so; at most three follow, each a citation from the one
             before

Splits: every (split, size, seed) has a random stream of its own. About 15 % of
the pairs of method and problem are held out: `valid_unseen` asks for these
alone, and the other splits never do.
"""

import functools
import random

from steppo_jax import types
from steppo_jax.envs import seeds

SPLITS = seeds.SPLITS
FAMILIES = ("search", "expand", "chain")
# Papers of a library; least and most answers of a query.
SIZES = {
  "tiny": (24, (2, 3)),
  "small": (60, (3, 4)),
  "medium": (150, (3, 6)),
  "full": (400, (4, 8)),
}
HELD_OUT_PERCENT = 15

METHODS = str.split("""
  attention diffusion distillation pruning retrieval bandits kernels
  transformers augmentation clustering boosting annealing hashing quantization
  ensembles curricula
""")
PROBLEMS = str.split("""
  translation navigation forecasting captioning parsing folding grasping
  routing scheduling denoising ranking diagnosis dialogue driving tracking
  summarization
""")
QUALITIES = str.split("""
  sparse robust scalable adaptive hierarchical efficient causal continual
  federated probabilistic
""")
VAGUE = str.split("""
  notes lessons evidence remarks beginnings foundations perspectives revisited
  afterthoughts observations
""")
SYLLABLES = str.split("ka lo mi ra ve to shi ne du pa zo ri fe lu")
_WORDINGS = (
  "Which papers use {m} for {p}?",
  "List the papers that apply {m} to {p}.",
)


def generate(seed: int, *, split: str, size: str) -> types.Task:
  """One query, the same for the same arguments on every machine.

  Args:
    seed: Number of the query within its split and size, at least 0.
    split: "train", "valid_seen" or "valid_unseen".
    size: "tiny" (24 papers), "small" (60), "medium" (150) or "full" (400).

  Returns:
    A task of the environment "paper_search". Its payload holds `question`,
    `answers`, `papers` as [id, title, text] and `citations` as [id, id].
    `golden_steps` is the number of calls with which `expert` finds them all.

  Raises:
    ValueError: an argument is unknown.
  """
  seeds.check(split, size, SIZES, seed)
  rng = random.Random(seeds.digest("paper_search", split, size, int(seed)))
  family = rng.choice(FAMILIES)
  method, problem = rng.choice(_pairs(split == "valid_unseen"))
  count, answers = SIZES[size]
  build = _Build(rng, method, problem)
  build.answer(family, rng.randint(*answers))
  build.fill(count)
  payload = build.payload()
  payload["question"] = rng.choice(_WORDINGS).format(m=method, p=problem)
  return types.Task(
    uid=f"paper_search/{split}/{size}/{family}/{int(seed)}",
    env="paper_search",
    family=family,
    payload=payload,
    golden_steps=len(_plan(payload)) + 1,
  )


def is_held_out(method: str, problem: str) -> bool:
  """Whether `valid_unseen` alone asks for this pair."""
  return (method, problem) in _held_out()


def expert(task: types.Task) -> list[str]:
  """Actions that find all answers of a generated query, one call each.

  A search for the question, then the fewest expansions, best first, that lead
  to answers which are not found yet.

  Raises:
    ValueError: the task brings no papers of its own.
  """
  if "papers" not in task.payload or "citations" not in task.payload:
    raise ValueError(f"task {task.uid} is no generated query")
  return [
    f"<search>{task.payload['question']}</search>",
    *(f"<expand>{id_}</expand>" for id_ in _plan(task.payload)),
  ]


def asked_for(task: types.Task) -> tuple[str, str]:
  """Method and problem of a generated query.

  Raises:
    ValueError: the question is in no wording of this generator.
  """
  words = task.payload["question"].rstrip("?.").split()
  found = (
    [w for w in words if w in METHODS],
    [w for w in words if w in PROBLEMS],
  )
  if any(len(names) != 1 for names in found):
    raise ValueError(f"task {task.uid} is no generated query")
  return found[0][0], found[1][0]


@functools.cache
def _held_out():
  pairs = [(m, p) for m in METHODS for p in PROBLEMS]
  order = sorted(pairs, key=lambda pair: seeds.digest("held out papers", *pair))
  return frozenset(order[: len(order) * HELD_OUT_PERCENT // 100])


@functools.cache
def _pairs(unseen):
  return tuple(
    (m, p)
    for m in METHODS
    for p in PROBLEMS
    if ((m, p) in _held_out()) == unseen
  )


def _plan(payload):
  """Answers to expand, in order: greedy, which is best on these graphs."""
  answers = set(payload["answers"])
  beside = {id_: set() for id_ in answers}
  for one, other in payload["citations"]:
    if one in answers and other in answers:
      beside[one].add(other)
      beside[other].add(one)
  words = set(payload["question"].lower().rstrip("?.").split())
  found = {
    id_
    for id_, title, _ in payload["papers"]
    if id_ in answers and words & set(title.lower().split())
  }
  plan = []
  while found != answers:
    best = max(sorted(found), key=lambda id_: len(beside[id_] - found))
    plan.append(best)
    found |= beside[best]
  return plan


class _Build:
  """A library while it is being filled."""

  def __init__(self, rng, method, problem):
    self._rng, self._method, self._problem = rng, method, problem
    self._titles: list[str] = []
    self._used: set[str] = set()
    self._answers: list[int] = []
    self._citations: list[tuple[int, int]] = []

  def answer(self, family, count):
    """Adds the answers and the citations that lead to them."""
    if family == "chain":
      # A search and three expansions fit into the paper's five steps.
      count = min(count, 4)
    plain = {"search": count, "expand": (count + 1) // 2, "chain": 1}[family]
    for number in range(count):
      if number < plain:
        title = self._plain(self._method, self._problem)
      else:
        title = self._vague()
        from_ = number - 1 if family == "chain" else self._rng.randrange(plain)
        self._cite(number, from_)
      self._titles.append(title)
      self._answers.append(number)

  def fill(self, count):
    """Adds papers on other things, which cite each other and the answers."""
    rng = self._rng
    while len(self._titles) < count:
      number = len(self._titles)
      method, problem = rng.choice(METHODS), rng.choice(PROBLEMS)
      draw = rng.random()
      if draw < 0.15:
        method = self._method
      elif draw < 0.3:
        problem = self._problem
      if (method, problem) == (self._method, self._problem):
        continue
      vague = rng.random() < 0.3
      self._titles.append(
        self._vague() if vague else self._plain(method, problem)
      )
      for other in rng.sample(range(number), min(number, rng.randint(1, 3))):
        # A paper that cites two answers would be a short cut.
        if other not in self._answers or rng.random() < 0.5:
          self._cite(number, other)

  def _cite(self, one, other):
    pair = (one, other)
    self._citations.append(pair if self._rng.random() < 0.5 else pair[::-1])

  def _plain(self, method, problem):
    rng = self._rng
    while True:
      name = rng.choice((
        f"{rng.choice(QUALITIES)} {method} for {problem}",
        f"{problem} by {rng.choice(QUALITIES)} {method}",
        f"{_coined(rng)}: {method} in {problem}",
      ))  # fmt: skip
      if self._is_new(name):
        return name.capitalize()

  def _vague(self):
    while True:
      name = f"{_coined(self._rng)} {self._rng.choice(VAGUE)}"
      if self._is_new(name):
        return name.capitalize()

  def _is_new(self, name):
    new = name not in self._used
    self._used.add(name)
    return new

  def payload(self):
    """The library, its papers numbered in an order that tells nothing."""
    order = list(range(len(self._titles)))
    self._rng.shuffle(order)
    ids = {old: f"p{new}" for new, old in enumerate(order)}
    return {
      "answers": sorted(ids[number] for number in self._answers),
      "papers": [[ids[old], self._titles[old], ""] for old in order],
      "citations": sorted([ids[a], ids[b]] for a, b in self._citations),
    }


def _coined(rng):
  return "".join(rng.choice(SYLLABLES) for _ in range(3))
