"""Generates multi-hop questions, each with a small corpus of its own.

A world is a set of invented things (persons, towns, films, ...), one paragraph
each, whose facts name other things. A question follows two facts: "What is the
birthplace of the director of Amber Gate?" needs the film's paragraph and then
the director's. Names are drawn anew for every world and paragraphs do not use
the nouns of the questions, so that neither memory nor one search will do.

Splits: every (split, size, seed) has a random stream of its own. About 15 % of
the pairs of facts that a question can follow are held out: `valid_unseen` asks
for these alone, and the other splits never do.
"""

import functools
import random

from steppo_jax import types
from steppo_jax.envs import seeds

SPLITS = seeds.SPLITS
# Paragraphs of a world.
SIZES = {"tiny": 12, "small": 30, "medium": 100, "full": 300}
HELD_OUT_PERCENT = 15

# Kind of thing: share of the paragraphs.
_SHARES = {
  "person": 0.32,
  "town": 0.18,
  "company": 0.16,
  "film": 0.14,
  "book": 0.1,
  "band": 0.1,
}
# Kind of thing: its facts as (noun of the question, kind of the other thing,
# words of the paragraph). Rivers and regions have no paragraphs.
FACTS = {
  "film": (
    ("director", "person", "directed by {}"),
    ("composer", "person", "with music by {}"),
    ("setting", "town", "filmed in {}"),
  ),
  "book": (
    ("author", "person", "written by {}"),
    ("publisher", "company", "printed by {}"),
  ),
  "band": (
    ("singer", "person", "fronted by {}"),
    ("hometown", "town", "formed in {}"),
  ),
  "company": (
    ("founder", "person", "started by {}"),
    ("seat", "town", "based in {}"),
  ),
  "person": (
    ("birthplace", "town", "born in {}"),
    ("teacher", "person", "taught by {}"),
    ("employer", "company", "working for {}"),
  ),
  "town": (
    ("mayor", "person", "governed by {}"),
    ("river", "river", "on the banks of the {}"),
    ("region", "region", "belonging to {}"),
  ),
}
FAMILIES = tuple(sorted(FACTS))

ONSETS = str.split("b br c d dr f g gr h j k l m n p r s st t tr v w z")
VOWELS = str.split("a e i o u ai ea o a e")
CODAS = str.split("l m n nd r rn s sk t th x lm")
ADJECTIVES = str.split("""
  amber silent crimson hollow distant broken golden northern paper winter
  hidden burning gentle iron velvet restless pale copper
""")
NOUNS = str.split("""
  gate harbour lantern garden river mirror orchard station bridge tower letter
  shadow voyage window forest island kingdom compass
""")


def generate(seed: int, *, split: str, size: str) -> types.Task:
  """One question, the same for the same arguments on every machine.

  Args:
    seed: Number of the question within its split and size, at least 0.
    split: "train", "valid_seen" or "valid_unseen".
    size: "tiny" (12 paragraphs), "small" (30), "medium" (100) or "full" (300).

  Returns:
    A task of the environment "search_qa". Its payload holds `question`,
    `answers` (the answer and its aliases), `gold_ids` (the two paragraphs in
    the order in which they are needed) and `paragraphs` as [id, title, text].

  Raises:
    ValueError: an argument is unknown.
  """
  seeds.check(split, size, SIZES, seed)
  rng = random.Random(seeds.digest("search_qa", split, size, int(seed)))
  world = _World(rng, SIZES[size])
  family = rng.choice(FAMILIES)
  first, second, chain = world.ask(family, split == "valid_unseen")
  start, middle, answer = chain
  word = "Who" if second[1] == "person" else "What"
  names = [answer]
  if second[1] == "person" and world.is_unique_family_name(answer):
    names.append(answer.split()[-1])
  return types.Task(
    uid=f"search_qa/{split}/{size}/{family}/{int(seed)}",
    env="search_qa",
    family=family,
    payload={
      "question": f"{word} is the {second[0]} of the {first[0]} of {start}?",
      "answers": names,
      "gold_ids": [world.ids[start], world.ids[middle]],
      "paragraphs": world.paragraphs(),
    },
    golden_steps=3,
  )


def is_held_out(family: str, first: str, second: str) -> bool:
  """Whether `valid_unseen` alone asks for this pair of facts.

  Args:
    family: Kind of the thing that the question names.
    first: Noun of the fact that is followed first, such as "director".
    second: Noun of the fact that is asked for, such as "birthplace".
  """
  return (first, second) in _held_out(family)


def expert(task: types.Task) -> list[str]:
  """Actions that answer a generated question: two searches, then the answer.

  Raises:
    ValueError: the task has no gold paragraphs of its own.
  """
  payload = task.payload
  try:
    titles = {id_: title for id_, title, _ in payload["paragraphs"]}
    searches = [titles[id_] for id_ in payload["gold_ids"]]
    return [
      *(f"<search>{title}</search>" for title in searches),
      f"<answer>{payload['answers'][0]}</answer>",
    ]
  except KeyError as error:
    raise ValueError(f"task {task.uid} is no generated question") from error


def _pairs(family):
  """All (first fact, second fact) that a question can follow."""
  return [
    (first, second)
    for first in FACTS[family]
    for second in FACTS.get(first[1], ())
  ]


@functools.cache
def _held_out(family):
  pairs = [(first[0], second[0]) for first, second in _pairs(family)]
  order = sorted(
    pairs, key=lambda pair: seeds.digest("held out", family, *pair)
  )
  return frozenset(order[: max(1, len(order) * HELD_OUT_PERCENT // 100)])


class _World:
  """Things, their facts, and the paragraphs that tell them."""

  def __init__(self, rng, count):
    self._rng = rng
    self._used = set()
    counts = {kind: max(1, round(s * count)) for kind, s in _SHARES.items()}
    counts["person"] += count - sum(counts.values())
    self._things = {
      kind: [self._name(kind) for _ in range(number)]
      for kind, number in counts.items()
    }
    names = [name for things in self._things.values() for name in things]
    rng.shuffle(names)
    self.ids = {name: f"d{number}" for number, name in enumerate(names)}
    self._facts = {}
    for kind, things in self._things.items():
      for name in things:
        for noun, other, _ in FACTS[kind]:
          self._facts[name, noun] = self._other(name, other)

  def _other(self, name, kind):
    if kind not in self._things:
      return self._name(kind)
    return self._rng.choice([n for n in self._things[kind] if n != name])

  def _name(self, kind):
    """A name that nothing else in this world has."""
    while True:
      name = self._draw(kind)
      if name not in self._used:
        self._used.add(name)
        return name

  def _draw(self, kind):
    rng = self._rng
    if kind in ("film", "book"):
      return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}".title()
    if kind == "band":
      return f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}s".title()
    if kind == "person":
      return f"{_syllables(rng, 1)} {_syllables(rng, 2)}"
    return _syllables(rng, 2)

  def is_unique_family_name(self, name):
    last = name.split()[-1]
    words = [word for used in self._used for word in used.split()]
    return words.count(last) == 1

  def ask(self, family, unseen):
    """Two facts of one side of the split, and the three names they join."""
    held_out = _held_out(family)
    asked = [
      (first, second)
      for first, second in _pairs(family)
      if ((first[0], second[0]) in held_out) == unseen
    ]
    chains = []
    for first, second in asked:
      for start in self._things[family]:
        middle = self._facts[start, first[0]]
        answer = self._facts[middle, second[0]]
        if answer != start:
          chains.append((first, second, (start, middle, answer)))
    if not chains:
      # Only where all of them lead back: draw the facts of one thing anew.
      first, second = self._rng.choice(asked)
      start = self._things[family][0]
      middle = self._facts[start, first[0]]
      free = [n for n in self._things[second[1]] if n not in (start, middle)]
      answer = self._facts[middle, second[0]] = self._rng.choice(free)
      return first, second, (start, middle, answer)
    # A pair first, so that common ones do not crowd out the others.
    pair = self._rng.choice(sorted({(c[0], c[1]) for c in chains}))
    return self._rng.choice([c for c in chains if (c[0], c[1]) == pair])

  def paragraphs(self):
    """[id, title, text] of every thing, in the order of the ids."""
    kinds = {n: kind for kind, names in self._things.items() for n in names}
    out = []
    for name, id_ in self.ids.items():
      kind = kinds[name]
      facts = [
        words.format(self._facts[name, noun]) for noun, _, words in FACTS[kind]
      ]
      # The name stands in title and text, as in an encyclopedia, so that a
      # search for it finds this paragraph before those that mention it.
      out.append([id_, name, f"{name}, a {kind} {', '.join(facts)}."])
    return out


def _syllables(rng, count):
  parts = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(count)]
  return ("".join(parts) + rng.choice(CODAS)).capitalize()
