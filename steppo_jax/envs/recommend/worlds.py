"""A generated catalogue of items with semantic ids, and sessions of users.

An item is a path of codes, one a level, such as "a3 b0 c2": items that share
their first codes are alike. What a user wants next is what a small sequential
recommender says, with attention over the session as in SASRec (Kang and McAuley
2018, arXiv:1808.09781), its weights drawn once for each size: an item is the
sum of vectors of its codes, coarse levels longer than fine ones, the user is
the mean of the items of the session weighted by how recent and how like the
last one they are, and the next item is the one with the largest product that
is not in the session.
"""

import functools
from typing import NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.envs import seeds

SPLITS = seeds.SPLITS
LETTERS = "abcdefgh"
_WIDTH = 16
# How a user moves through the catalogue: in one taste, or from one to another.
FAMILIES = ("steady", "turning")


class Size(NamedTuple):
  """How large a catalogue is.

  Attributes:
    levels: K, codes of an item.
    codes: Codes that a level has.
    items: Number of items.
    session: Items of a session.
  """

  levels: int
  codes: int
  items: int
  session: int


SIZES = {
  "tiny": Size(2, 4, 12, 3),
  "small": Size(3, 6, 80, 5),
  "medium": Size(3, 16, 1000, 8),
  "full": Size(4, 32, 10_000, 12),
}


class Catalogue(NamedTuple):
  """All items of a size.

  Attributes:
    codes: [N, K] int, the codes of each item.
    vectors: [N, D] what the recommender knows of each.
  """

  codes: np.ndarray
  vectors: np.ndarray


@functools.cache
def catalogue(size: str) -> Catalogue:
  """The items of a size, the same in every process.

  Raises:
    ValueError: there is no such size.
  """
  seeds.check("train", size, SIZES)
  shape = SIZES[size]
  random = np.random.default_rng(seeds.digest("recommend", size))
  paths = np.arange(shape.codes**shape.levels)
  paths = random.choice(paths, size=shape.items, replace=False)
  powers = shape.codes ** np.arange(shape.levels)[::-1]
  codes = np.sort(paths)[:, None] // powers % shape.codes
  tables = random.normal(size=(shape.levels, shape.codes, _WIDTH))
  tables /= np.linalg.norm(tables, axis=-1, keepdims=True)
  lengths = 0.6 ** np.arange(shape.levels)
  parts = [tables[k, codes[:, k]] * lengths[k] for k in range(shape.levels)]
  return Catalogue(codes, np.sum(parts, axis=0))


def following(found: Catalogue, session: list[int]) -> int:
  """The item that the recommender puts behind a session, by its number."""
  seen = found.vectors[session]
  alike = seen @ seen[-1]
  recent = 0.5 * np.arange(len(session))
  weight = np.exp(alike + recent)
  score = found.vectors @ (weight @ seen / weight.sum())
  score[session] = -np.inf
  return int(np.argmax(score))


def name(level: int, code: int) -> str:
  """A code as it is written: the letter of its level and its number."""
  return f"{LETTERS[level]}{code}"


def generate(number: int, *, split: str, size: str) -> types.Task:
  """A session and the item behind it.

  Raises:
    ValueError: there is no such split, size or number.
  """
  seeds.check(split, size, SIZES, number)
  found, shape = catalogue(size), SIZES[size]
  random = np.random.default_rng(
    seeds.digest("recommend", split, size, number) % 2**63
  )
  family = FAMILIES[int(random.integers(2))]
  session = [int(random.integers(shape.items))]
  turn = int(random.integers(1, shape.session))
  while len(session) < shape.session:
    if family == "turning" and len(session) == turn:
      rest = [i for i in range(shape.items) if i not in session]
      session.append(int(random.choice(rest)))
    elif random.random() < 0.3:
      session.append(_near(found, session, random))
    else:
      session.append(following(found, session))
  path = lambda i: [name(k, int(c)) for k, c in enumerate(found.codes[i])]
  return types.Task(
    f"recommend/{size}/{split}/{number}",
    "recommend",
    family,
    {
      "session": [path(i) for i in session],
      "seen": "; ".join(" ".join(path(i)) for i in session),
      "target": path(following(found, session)),
      "codes": shape.codes,
    },
    golden_steps=shape.levels,
  )


def _near(found, session, random) -> int:
  """An item that shares its first code with the last one, if one is left."""
  first = found.codes[:, 0] == found.codes[session[-1], 0]
  first[session] = False
  left = np.flatnonzero(first)
  return int(random.choice(left)) if left.size else following(found, session)
