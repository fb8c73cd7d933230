"""What a shop sells and what its customers want."""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence

from steppo_jax.envs.retrieval import bm25
from steppo_jax.envs.webshop import match
from steppo_jax.envs.webshop import score as webshop_score

# As in the published shop: results are shown up to here, in pages.
MOST_RESULTS = 50
PAGE_SIZE = 10
# The published order of the goals, and how many at its end are for tests.
GOAL_SEED = 233
TEST_GOALS = 200

_MOST_COMBINATIONS = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
  """Something that can be bought.

  Attributes:
    asin: Its name in calls, unique in the shop.
    name: Title.
    brand: Brand.
    category: Department.
    query: Kind of product, such as "desk lamp".
    product_category: Path of categories, joined by "›".
    price: Lowest price in dollars.
    price_text: Price as shown.
    description: Long text.
    features: Short texts.
    attributes: What a goal may ask for.
    choices: Values of each option by its name, both folded, in the order of
      the data, repeated where the data repeat them.
    rating: Average rating as shown, "" if not known.
    reviews: Texts of reviews.
    instruction: What a customer says who wants it, "" if nobody does.
    wanted: Attributes that the customer asks for.
    options: `choices` with each value once; made from it.
    text: Everything that is written about it, folded; made from the rest.
  """

  asin: str
  name: str
  brand: str
  category: str
  query: str
  product_category: str
  price: float
  price_text: str
  description: str
  features: tuple[str, ...]
  attributes: tuple[str, ...]
  choices: Mapping[str, tuple[str, ...]]
  rating: str = ""
  reviews: tuple[str, ...] = ()
  instruction: str = ""
  wanted: tuple[str, ...] = ()
  options: Mapping[str, tuple[str, ...]] = dataclasses.field(init=False)
  text: str = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    options = {k: tuple(dict.fromkeys(v)) for k, v in self.choices.items()}
    parts = [
      *(self.name, self.brand, self.product_category, self.category),
      *(self.query, self.description, *self.features, *self.attributes),
    ]
    for name, values in options.items():
      parts += [name, *values]
    text = match.fold(" ".join(part for part in parts if part))
    object.__setattr__(self, "options", options)
    object.__setattr__(self, "text", text)


@dataclasses.dataclass(frozen=True)
class Goal:
  """What one customer wants; the names are those of the published goals.

  Attributes:
    goal_index: Its place in the published order.
    split: "train" or "test" of the published order.
    asin: The product that the goal was made from.
    category: Department of that product.
    query: Kind of that product.
    instruction: The task in words.
    attributes: Attributes that the instruction asks for.
    goal_options: Values of options that the instruction asks for.
    price_upper: Highest price in dollars.
  """

  goal_index: int
  split: str
  asin: str
  category: str
  query: str
  instruction: str
  attributes: tuple[str, ...]
  goal_options: Mapping[str, str]
  price_upper: float


class Catalog:
  """A shop: products, goals, search and scores. It never changes.

  Attributes:
    products: All products.
    goals: All goals, in their order.
    page_size: Results on a page.

  Args:
    products: No two with the same asin.
    goals: Goals whose products are among `products`.
    page_size: Results on a page, at least 1.

  Raises:
    ValueError: an asin appears twice, or a goal's product is not sold.
  """

  def __init__(
    self,
    products: Iterable[Product],
    goals: Iterable[Goal],
    *,
    page_size: int = PAGE_SIZE,
  ):
    self.products = tuple(products)
    self.goals = tuple(goals)
    self.page_size = page_size
    # Calls are folded, so that two names must differ in more than case.
    self._product = {p.asin.lower(): p for p in self.products}
    if len(self._product) < len(self.products):
      seen = set()
      for asin in (p.asin.lower() for p in self.products):
        if asin in seen:
          raise ValueError(f"the asin {asin!r} appears twice")
        seen.add(asin)
    for goal in self.goals:
      self.product(goal.asin)
    # The constants of the published small mode.
    texts = [bm25.words(p.text) for p in self.products]
    self._index = bm25.Bm25(texts, k1=1.5, b=0.75)

  def product(self, asin: str) -> Product:
    """The product of that name, whatever its case.

    Raises:
      ValueError: there is none.
    """
    product = self._product.get(str(asin).lower())
    if product is None:
      raise ValueError(f"there is no product {str(asin)[:40]!r} in this shop")
    return product

  def search(self, words: Sequence[str]) -> list[Product]:
    """At most `MOST_RESULTS` products that share a word, best first."""
    ids, _ = self._index.search(words, MOST_RESULTS)
    return [self.products[i] for i in ids]

  def score(
    self, goal_index: int, asin: str, options: Mapping[str, str]
  ) -> webshop_score.Score:
    """What buying a product is worth for a goal.

    Args:
      goal_index: Number of the goal.
      asin: What is bought.
      options: Chosen value of each option by its name; may be empty.

    Raises:
      ValueError: there is no such goal or product.
    """
    if not 0 <= goal_index < len(self.goals):
      raise ValueError(
        f"goal_index must be below {len(self.goals)}, got {goal_index}"
      )
    goal = self.goals[goal_index]
    return webshop_score.score(
      goal, self.product(goal.asin), self.product(asin), options
    )


def goals_of(products: Iterable[Product], *, seed: int = GOAL_SEED):
  """The goals of products as the public code of StepPO makes them.

  Every combination of options of a product that somebody wants is a goal; all
  goals are shuffled, and the last `TEST_GOALS` are for tests. The highest price
  is half as much again as the product's, and a dollar.

  Args:
    products: Their order matters.
    seed: Of the shuffle.

  Returns:
    Goals in their order.

  Raises:
    ValueError: a product has more combinations than can be listed, or is
      wanted for no attribute.
  """
  found = []
  for product in products:
    if not product.instruction:
      continue
    if not product.wanted:
      raise ValueError(
        f"product {product.asin}: instruction_attributes is empty"
      )
    count = math.prod(len(values) for values in product.choices.values())
    if count > _MOST_COMBINATIONS:
      raise ValueError(
        f"product {product.asin}: {count} combinations of options, at most "
        f"{_MOST_COMBINATIONS} are listed"
      )
    for values in itertools.product(*product.choices.values()):
      found.append((product, dict(zip(product.choices, values, strict=True))))
  random.Random(seed).shuffle(found)
  first_test = len(found) - TEST_GOALS
  return [
    Goal(
      goal_index=index,
      split="train" if index < first_test else "test",
      asin=product.asin,
      category=product.category,
      query=product.query,
      instruction=product.instruction + _with(options),
      attributes=product.wanted,
      goal_options=options,
      price_upper=round(product.price * 1.5 + 1.0, 2),
    )
    for index, (product, options) in enumerate(found)
  ]


def _with(options):
  listed = ", ".join(f"{name}: {value}" for name, value in options.items())
  return f" with {listed}" if listed else ""
