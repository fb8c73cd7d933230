"""The pages of a shop, and how calls lead from one to another."""

import collections
import re

from steppo_jax.envs.retrieval import bm25
from steppo_jax.envs.webshop import match, score

REFUSED = "That is not possible here."
WELCOME = "Welcome to the shop."
SEARCH = "search[words]"
PARTS = ("description", "features", "reviews")
BUY, BACK, NEXT, PREVIOUS = "buy now", "back to search", "next >", "< prev"

_CALL = re.compile(r"\s*(search|click)\[(.*)\]\s*", re.IGNORECASE | re.DOTALL)
# What is longer is no call: an action may be of any length.
MOST_CHARACTERS = 1000
_TITLE, _TEXT = 160, 2000


class Visit:
  """One customer's way through a shop.

  Attributes:
    catalog: The shop, a `webshop.catalog.Catalog`.
    goal: What the customer wants.
    score: What was bought is worth this; None before.

  Args:
    catalog: The shop.
    goal_index: Number of the goal.

  Raises:
    ValueError: there is no such goal.
  """

  def __init__(self, catalog, goal_index: int):
    if isinstance(goal_index, bool) or not isinstance(goal_index, int):
      raise ValueError(f"the goal must be an integer, got {goal_index!r}")
    if not 0 <= goal_index < len(catalog.goals):
      raise ValueError(
        f"the goal must be below {len(catalog.goals)}, got {goal_index}"
      )
    self.catalog = catalog
    self.goal = catalog.goals[goal_index]
    self._goal_index = goal_index
    self.reset()

  def reset(self) -> None:
    """Starts over."""
    self.score: score.Score | None = None
    self._look("start")

  def _look(self, kind: str | None = None):
    """Goes to another kind of page, or sees the same one changed."""
    if kind is not None:
      self._kind, self._part = kind, ""
    if kind in ("start", "results"):
      self._product, self._options = None, {}
    if kind == "start":
      self._query, self._hits, self._page = [], [], 0
    self._clicks = self._find_clicks()
    self._observation = None

  def play(self, text: str) -> bool:
    """Makes one call; False, and nothing changes, if it is not possible.

    Case and the amount of white space in a call do not matter.
    """
    call = _CALL.fullmatch(text) if len(text) <= MOST_CHARACTERS else None
    if call is None or self._kind == "end":
      return False
    if call[1].lower() == "search":
      words = bm25.words(call[2])
      if not words:
        return False
      self._query, self._hits = words, self.catalog.search(words)
      self._page = 0
      self._look("results")
      return True
    do = self._clicks.get(match.fold(call[2]))
    if do is None:
      return False
    function, *arguments = do
    function(self, *arguments)
    return True

  @property
  def bought(self) -> bool:
    """Whether the visit is over."""
    return self._kind == "end"

  @property
  def commands(self) -> list[str]:
    """The possible calls; `SEARCH` stands for a search for any words."""
    if self._kind == "end":
      return []
    names = self._clicks
    if self._kind == "item":
      options = (label for label, _, _ in labels(self._product))
      names = [*PARTS, *options, PREVIOUS, BACK, BUY]
    return [SEARCH, *(f"click[{name}]" for name in names)]

  def _find_clicks(self):
    """What every click does, by what is written on it."""
    if self._kind == "results":
      size = self.catalog.page_size
      shown = self._hits[self._page * size : (self._page + 1) * size]
      clicks = {p.asin.lower(): (Visit._open, p) for p in shown}
      if (self._page + 1) * size < len(self._hits):
        clicks[NEXT] = (Visit._turn, 1)
      if self._page > 0:
        clicks[PREVIOUS] = (Visit._turn, -1)
      clicks[BACK] = (Visit._look, "start")
      return clicks
    if self._kind == "part":
      return {
        PREVIOUS: (Visit._look, "item"),
        BACK: (Visit._look, "start"),
        BUY: (Visit._buy,),
      }
    if self._kind != "item":
      return {}
    clicks = {part: (Visit._read, part) for part in PARTS}
    for label, name, value in labels(self._product):
      # The long form is understood where the short one is shown, too.
      clicks.setdefault(f"{name}: {value}", (Visit._choose, name, value))
      clicks[label] = (Visit._choose, name, value)
    return clicks | {
      PREVIOUS: (Visit._look, "results"),
      BACK: (Visit._look, "start"),
      BUY: (Visit._buy,),
    }

  def _turn(self, pages):
    self._page += pages
    self._look()

  def _open(self, product):
    self._product = product
    self._look("item")

  def _choose(self, name, value):
    self._options = {**self._options, name: value}
    self._observation = None

  def _read(self, part):
    self._look("part")
    self._part = part

  def _buy(self):
    self.score = self.catalog.score(
      self._goal_index, self._product.asin, self._options
    )
    self._look("end")

  @property
  def observation(self) -> str:
    """What the page says."""
    if self._observation is None:
      self._observation = getattr(self, f"_show_{self._kind}")()
    return self._observation

  def _show_start(self):
    return f"{WELCOME} You can search for words."

  def _show_results(self):
    head = " ".join(self._query)
    if not self._hits:
      return f"Nothing was found for: {head}"
    size = self.catalog.page_size
    first = self._page * size
    shown = self._hits[first : first + size]
    lines = [
      f"Results {first + 1} to {first + len(shown)} of {len(self._hits)} for: "
      f"{head}"
    ]
    lines += [_line(product) for product in shown]
    return "\n".join(lines)

  def _show_item(self):
    lines = [_line(self._product)]
    for name, values in self._product.options.items():
      lines.append(f"{name} ({self._chosen(name)}): {', '.join(values)}")
    return "\n".join(lines)

  def _chosen(self, name):
    return self._options.get(name, "not chosen")

  def _show_part(self):
    product = self._product
    if self._part == "description":
      texts = [product.description]
    elif self._part == "features":
      texts = product.features
    else:
      rating = product.rating or "none"
      texts = [f"average rating: {rating}", *product.reviews]
    body = "\n".join(_cut(text, _TEXT) for text in texts if text)
    return f"{_line(product)}\n{self._part}:\n{body or 'none'}"

  def _show_end(self):
    return f"You have bought {_line(self._product)}"

  def anchor(self) -> str:
    """Canonical text of the state as far as the customer can see it.

    Results are told by what is listed, however they were searched for.
    """
    if self._kind == "results":
      listed = " ".join(self._clicks)
      return f"results page {self._page + 1}: {listed}"
    if self._kind == "start":
      return "start"
    chosen = sorted(self._options.items())
    options = "".join(f", {name}: {value}" for name, value in chosen)
    part = f" {self._part}" if self._kind == "part" else ""
    return f"{self._kind}{part} {self._product.asin}{options}"


def labels(product) -> list[tuple[str, str, str]]:
  """What is written on the options of a product: (label, option, value).

  That is the value, unless it could mean something else on the page; then the
  option's name stands before it.
  """
  pairs = [(k, v) for k, values in product.options.items() for v in values]
  counts = collections.Counter(value for _, value in pairs)
  taken = {*PARTS, PREVIOUS, BACK, BUY, *(f"{k}: {v}" for k, v in pairs)}
  return [
    (f"{k}: {v}" if counts[v] > 1 or v in taken else v, k, v) for k, v in pairs
  ]


def plan(catalog, goal_index: int) -> list[str]:
  """Calls that buy what the goal was made from, with its options.

  The search is for the instruction if that lists the product on the first page,
  for the product's title otherwise; the shorter plan of the two where neither
  does.

  Args:
    catalog: A `webshop.catalog.Catalog`.
    goal_index: Number of the goal.

  Raises:
    ValueError: no search finds the product.
  """
  goal = catalog.goals[goal_index]
  product = catalog.product(goal.asin)
  plans = []
  for text in (goal.instruction, product.name, product.text):
    words = bm25.words(text[: MOST_CHARACTERS // 2])
    hits = catalog.search(words)
    if product not in hits:
      continue
    turns = hits.index(product) // catalog.page_size
    plans.append([f"search[{' '.join(words)}]", *[f"click[{NEXT}]"] * turns])
    if turns == 0:
      break
  if not plans:
    raise ValueError(f"goal {goal_index}: no search finds {product.asin}")
  wanted = goal.goal_options
  options = [
    f"click[{label}]" for label, k, v in labels(product) if wanted.get(k) == v
  ]
  best = min(plans, key=len)
  return [*best, f"click[{product.asin.lower()}]", *options, f"click[{BUY}]"]


def _line(product):
  title = _cut(product.name, _TITLE) or "no title"
  return f"{product.asin.lower()} | {title} | {product.price_text}"


def _cut(text, limit):
  text = " ".join(text.split())
  return text if len(text) <= limit else f"{text[: limit - 3]}..."
