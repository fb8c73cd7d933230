"""Generates shops and their customers: as many as are asked for, from a seed.

Splits: every (split, size) has shops of its own. On top of that, about 15 % of
all pairs of a kind of product and an attribute are held out: customers of
`valid_unseen` ask for such a pair, and those of the other splits never do.
"""

import functools
import itertools
import random

from steppo_jax import types
from steppo_jax.envs import seeds
from steppo_jax.envs.webshop import catalog as webshop_catalog
from steppo_jax.envs.webshop import pages, tables

SPLITS = seeds.SPLITS
# Per size: products, kinds of them, attributes of a product, attributes that
# its title leaves out, most values of an option, results on a page, and how
# many shops a split has.
SIZES = {
  "tiny": ((6, 8), 3, 1, 0, 2, 4, 256),
  "small": ((16, 24), 5, 2, 0, 3, 5, 128),
  "medium": ((80, 100), 12, 3, 1, 4, 10, 32),
  "full": ((900, 1000), 36, 4, 1, 6, 10, 4),
}
HELD_OUT_PERCENT = 15


def generate(seed: int, *, split: str, size: str) -> types.Task:
  """One customer of one shop, the same for the same arguments everywhere.

  Args:
    seed: Number of the task within its split and size, at least 0.
    split: "train", "valid_seen" or "valid_unseen".
    size: "tiny" (6-8 products), "small" (16-24), "medium" (80-100) or "full"
      (900-1,000, as in the published shop).

  Returns:
    A task of the environment "webshop" with its shortest solution's length;
    its family is the department.

  Raises:
    ValueError: an argument is unknown.
  """
  seeds.check(split, size, SIZES, seed)
  rng = random.Random(seeds.digest("webshop", split, size, int(seed)))
  number = rng.randrange(SIZES[size][-1])
  where = {"size": size, "split": split, "number": number}
  catalog = shop(**where)
  goal = rng.choice(catalog.goals)
  return types.Task(
    uid=f"webshop/{split}/{size}/{goal.category}/{int(seed)}",
    env="webshop",
    family=goal.category,
    payload={
      "shop": where,
      "goal": goal.goal_index,
      "instruction": goal.instruction,
    },
    golden_steps=len(pages.plan(catalog, goal.goal_index)),
  )


@functools.lru_cache(maxsize=512)
def shop(*, size: str, split: str, number: int) -> webshop_catalog.Catalog:
  """A shop with all its customers; shops that were made are kept.

  Args:
    size: See `generate`.
    split: See `generate`.
    number: Which of the shops of that split and size.

  Raises:
    ValueError: there is no such shop.
  """
  seeds.check(split, size, SIZES)
  if isinstance(number, bool) or not 0 <= number < SIZES[size][-1]:
    raise ValueError(
      f"number must be below {SIZES[size][-1]}, the shops of a split of size "
      f"{size!r}, got {number!r}"
    )
  rng = random.Random(seeds.digest("shop", split, size, number))
  products = _stock(rng, split, size)
  goals = []
  for product in products:
    held_out = any(is_held_out(product.query, a) for a in product.attributes)
    if held_out == (split == "valid_unseen"):
      goals += _customers(product, len(goals), split)
  return webshop_catalog.Catalog(products, goals, page_size=SIZES[size][5])


def is_held_out(kind: str, attribute: str) -> bool:
  """Whether customers who ask for this pair are in `valid_unseen` alone."""
  return (kind, attribute) in _held_out()


@functools.cache
def _held_out():
  pairs = [
    (kind, attribute)
    for _, attributes, kinds in tables.DEPARTMENTS.values()
    for kind, attribute in itertools.product(kinds, attributes)
  ]
  pairs.sort(key=lambda pair: seeds.digest("held out", *pair))
  return frozenset(pairs[: len(pairs) * HELD_OUT_PERCENT // 100])


def _stock(rng, split, size):
  """The products: no two of a department have the same attributes.

  WebShop's score hardly looks at the kind of a product, so that another kind
  with the same attributes would do.
  """
  (least, most), num_kinds, num_attributes, *_ = SIZES[size]
  unseen = split == "valid_unseen"
  # Sets of one length: different ones never contain each other.
  free = {
    department: list(itertools.combinations(attributes, num_attributes))
    for department, (_, attributes, _) in tables.DEPARTMENTS.items()
  }
  kinds = [
    (department, kind)
    for department, (_, _, kinds) in tables.DEPARTMENTS.items()
    for kind in kinds
  ]
  # The first product has customers, so that no shop is without.
  first = rng.choice(
    [
      (department, kind, found)
      for department, kind in kinds
      for found in free[department]
      if any(is_held_out(kind, a) for a in found) == unseen
    ]
  )
  kinds.remove(first[:2])
  kinds = [first[:2], *rng.sample(kinds, num_kinds - 1)]
  free[first[0]].remove(first[2])
  for sets in free.values():
    rng.shuffle(sets)
  count = rng.randint(least, most)
  picks = [rng.choice(kinds) for _ in range(count - 1)]
  stock = [first, *((d, kind, free[d].pop()) for d, kind in picks)]
  numbers = rng.sample(range(1, count + 1), count)
  return [
    _product(rng, size, *what, number)
    for what, number in zip(stock, numbers, strict=True)
  ]


def _product(rng, size, department, kind, attributes, number):
  """One product: what its title leaves out is told among its features."""
  *_, silent, most_values, _, _ = SIZES[size]
  path, _, kinds = tables.DEPARTMENTS[department]
  (low, high), options = kinds[kind]
  brand = "".join(rng.sample(tables.SYLLABLES, 2))
  shuffled = rng.sample(attributes, len(attributes))
  told = shuffled[: len(shuffled) - silent]
  price = rng.randint(low, high) - 0.01
  choices = {}
  for option in options:
    values = tables.OPTIONS[option]
    count = rng.randint(2, max(2, min(most_values, len(values))))
    choices[option] = tuple(rng.sample(values, count))
  features = [f"it is {attribute}" for attribute in shuffled]
  return webshop_catalog.Product(
    asin=f"p{number}",
    name=f"{brand} {kind}, {', '.join(told)}" if told else f"{brand} {kind}",
    brand=brand,
    category=department,
    query=kind,
    product_category=f"{path} › {kind}",
    price=price,
    price_text=f"${price:.2f}",
    description=f"A {kind} made by {brand}.",
    features=tuple(features),
    attributes=tuple(sorted(attributes)),
    choices=choices,
    rating=f"{rng.randint(20, 50) / 10:.1f}",
    reviews=tuple(rng.sample(tables.REVIEWS, rng.randint(0, 2))),
  )


def _customers(product, first, split):
  """A goal for every combination of options."""
  listed = ", ".join(product.attributes)
  upper = 5.0 * (product.price // 5.0 + 2.0)
  for index, values in enumerate(itertools.product(*product.options.values())):
    options = dict(zip(product.options, values, strict=True))
    asked = ", ".join(f"{name}: {value}" for name, value in options.items())
    yield webshop_catalog.Goal(
      goal_index=first + index,
      split=split,
      asin=product.asin,
      category=product.category,
      query=product.query,
      instruction=(
        f"find a {product.query} ({listed}) with {asked}, for less than "
        f"{upper:.0f} dollars"
      ),
      attributes=product.attributes,
      goal_options=options,
      price_upper=upper,
    )
