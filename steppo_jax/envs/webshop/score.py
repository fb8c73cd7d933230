"""What a purchase is worth: WebShop's score and that of StepPO's small mode.

Neither depends on what is installed. WebShop takes the words of a title that a
language model tags as nouns; here a title's words are all of its words, as in
the public code of StepPO where no such model is installed.
"""

from collections.abc import Mapping
from typing import NamedTuple

from steppo_jax.envs.webshop import match

SUCCESS = 0.999
_FUZZY = 85


class Score(NamedTuple):
  """What a purchase is worth.

  Attributes:
    small: Score of StepPO's small mode, in [0, 1].
    official: WebShop's score, in [0, 1].
    success: Whether `official` reaches 0.999.
  """

  small: float
  official: float
  success: bool


def score(goal, target, product, options: Mapping[str, str]) -> Score:
  """Both scores of a purchase.

  Args:
    goal: What is wanted, a `catalog.Goal`.
    target: The product that the goal was made from.
    product: What is bought, a `catalog.Product` too.
    options: Chosen value of each option by its name.
  """
  fold = match.fold
  chosen = {fold(name): fold(value) for name, value in options.items()}
  full = official(goal, target, product, chosen)
  return Score(small(goal, product, chosen), full, full >= SUCCESS)


def small(goal, product, chosen: Mapping[str, str]) -> float:
  """Score of StepPO's small mode.

      0.35 [same product] + 0.30 share of attributes in the product's text
      + 0.25 share of options chosen exactly + 0.10 [price is not too high]

  and half of that for another product.

  Args:
    goal: What is wanted.
    product: What is bought.
    chosen: Folded names and values of the chosen options.

  Source: the public code of StepPO, WebShop in its small mode.
  """
  same = product.asin == goal.asin
  wanted = [match.fold(a) for a in goal.attributes]
  found = _share([a in product.text for a in wanted])
  met = _share([chosen.get(k) == v for k, v in goal.goal_options.items()])
  cheap = product.price <= goal.price_upper
  total = 0.35 * same + 0.30 * found + 0.25 * met + 0.10 * cheap
  return total if same else 0.5 * total


def official(goal, target, product, chosen: Mapping[str, str]) -> float:
  """WebShop's score.

      type · (attributes met + options met + [price is not too high])
           / (attributes + options + 1)

  The attributes are all those of the goal's product. One is met by an attribute
  of the bought product with `token_set_ratio` above 85, or where the product's
  text holds it; an option, by any chosen value with a ratio above 85 after
  `match.colour` of both.

  Args:
    goal: What is wanted.
    target: The product that the goal was made from.
    product: What is bought.
    chosen: Folded names and values of the chosen options.

  Source: Yao et al. 2022, arXiv:2207.01206, section 3 and appendix, as the
  public code of StepPO computes it.
  """
  fold, ratio = match.fold, match.token_set_ratio
  wanted = [fold(a) for a in target.attributes or goal.attributes]
  has = [fold(a) for a in product.attributes]
  met = sum(
    a in has or any(ratio(h, a) > _FUZZY for h in has) or a in product.text
    for a in wanted
  )
  values = [match.colour(v) for v in chosen.values()]
  options = [match.colour(v) for v in goal.goal_options.values()]
  met += sum(any(ratio(v, o) > _FUZZY for v in values) for o in options)
  met += product.price <= goal.price_upper
  return type_factor(target, product) * met / (len(wanted) + len(options) + 1)


def type_factor(target, product) -> float:
  """How far a product is of the wanted type: 1.0, 0.5, 0.1 or 0.0.

  Let t be the share of the target's title words that the product's title has.

      0.0 if t is 0; 0.1 if t is below 0.1; otherwise
      1.0 for the same query, two common levels of category, or t above 0.2;
      0.5 for anything else

  Args:
    target: The product that is wanted.
    product: What is bought.
  """
  fold = match.fold
  title = fold(target.name).split()
  has = set(fold(product.name).split())
  share = len(has & set(title)) / len(title) if title else 0.2
  if share < 0.1:
    return 0.1 if share > 0 else 0.0
  if share > 0.2 or fold(product.query) == fold(target.query):
    return 1.0
  return 1.0 if len(_levels(target) & _levels(product)) >= 2 else 0.5


def _levels(product):
  path = product.product_category.split("›")
  return {match.fold(level) for level in path}


def _share(met):
  return sum(met) / len(met) if met else 1.0
