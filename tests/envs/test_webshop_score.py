"""The scores: the fuzzy measure, golden numbers, and an independent path."""

import dataclasses
import gzip
import json
import random

import hypothesis
import pytest
import webshop_slow
from hypothesis import strategies as st

from steppo_jax.envs.webshop import catalog as webshop_catalog
from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import match as webshop_match
from steppo_jax.envs.webshop import score as score_lib


@pytest.fixture(scope="module")
def webshop_dir(shared_dir):
  path = shared_dir / "data" / "webshop"
  if not path.is_dir():
    pytest.skip(f"no published products at {path}")
  return path


@pytest.fixture(scope="module")
def catalog(webshop_dir):
  return webshop_env.load_catalog(webshop_dir)


def _lines(path):
  with gzip.open(path, "rt", encoding="utf-8") as lines:
    return [json.loads(line) for line in lines]


def _json(path):
  with gzip.open(path, "rt", encoding="utf-8") as file:
    return json.load(file)


# What thefuzz 0.22.1 on rapidfuzz 3.14.6 answers.
@pytest.mark.parametrize(
  ("left", "right", "percent"),
  [
    ("red lamp", "lamp red", 100),
    ("xx-large", "large", 100),
    ("a_b", "a b", 100),
    ("natural hair", "natural hairs", 96),
    ("teen girls", "teen girl", 95),
    # 2 * 9 / (10 + 11) = 85.7 %, a whole 86: just enough to match.
    ("grey thumb", "green thumb", 86),
    # The accent is dropped: "caf" and "cafe", 6 / 7.
    ("café", "cafe", 86),
    ("long sleeve", "sleeve shirt", 71),
    ("日本", "日本 語", 100),
    ("ß", "ss", 0),
    ("#", "#", 0),
    ("", "", 0),
  ],
)
def test_the_fuzzy_measure_is_the_published_one(left, right, percent):
  assert webshop_match.token_set_ratio(left, right) == percent
  assert webshop_match.token_set_ratio(right, left) == percent


@hypothesis.given(*[st.text("abAB -_.é日9", max_size=24)] * 2)
def test_the_fuzzy_measure_equals_the_slow_one(left, right):
  found = webshop_match.token_set_ratio(left, right)
  assert found == webshop_slow.set_ratio(left, right)


def test_a_text_has_the_first_of_its_colours():
  assert webshop_match.colour("2005Black") == "black"
  assert webshop_match.colour("navy blue") == "blue"
  assert webshop_match.colour("Hundred  acres") == "red"
  assert webshop_match.colour("A5") == "a5"
  assert list(webshop_match.COLOURS) == webshop_slow.COLOURS


def _product(asin, **fields):
  empty = {"brand": "", "category": "home", "query": "lamp", "description": ""}
  empty |= {"product_category": "Home › Light", "price": 20.0, "name": "lamp"}
  empty |= {"price_text": "$20", "features": (), "choices": {}}
  empty |= {"attributes": ("solid wood", "hand made")}
  return webshop_catalog.Product(asin=asin, **{**empty, **fields})


def _goal(**fields):
  return webshop_catalog.Goal(
    **{
      "goal_index": 0,
      "split": "train",
      "asin": "a",
      "category": "home",
      "query": "lamp",
      "instruction": "",
      "attributes": ("solid wood",),
      "goal_options": {"color": "red"},
      "price_upper": 30.0,
      **fields,
    }
  )


def test_both_scores_by_hand():
  target = _product("a", name="desk lamp")
  goal = _goal()
  # All is met: 0.35 + 0.30 + 0.25 + 0.10, and (2 + 1 + 1) / 4.
  full = score_lib.score(goal, target, target, {"Color": "Red "})
  assert full == pytest.approx((1.0, 1.0, True))
  # The option is missing: 0.75, and 3 / 4.
  none = score_lib.score(goal, target, target, {})
  assert none == pytest.approx((0.75, 0.75, False))
  # Another lamp, too dear, with one attribute of two and the colour in words:
  # (0.30 + 0) / 2, and 1.0 * (1 + 1 + 0) / 4.
  other = _product(
    "b", name="floor lamp", price=31.0, attributes=("solid woods",)
  )
  found = score_lib.score(goal, target, other, {"shade": "dark red"})
  assert found.small == pytest.approx(0.15)
  # "dark" comes before "red" among the colours, so the option does not match.
  assert found.official == pytest.approx(0.25)
  found = score_lib.score(goal, target, other, {"shade": "fire red"})
  assert found.official == pytest.approx(0.5)


@pytest.mark.parametrize(
  ("fields", "factor"),
  [
    ({"name": "a b c d e f g h i j"}, 1.0),
    # Same query, but one word of ten in common or none at all.
    ({"name": "a x"}, 1.0),
    ({"name": "x y"}, 0.0),
    ({"name": "a b c", "query": "bed", "product_category": ""}, 1.0),
    ({"name": "a b", "query": "bed", "product_category": "Home › B"}, 0.5),
    ({"name": "a b", "query": "bed", "product_category": "Light›Home"}, 1.0),
    ({"name": "", "query": "lamp"}, 0.0),
  ],
)
def test_the_type_factor_follows_its_ladder(fields, factor):
  target = _product("a", name="a b c d e f g h i j")
  assert score_lib.type_factor(target, _product("b", **fields)) == factor


def test_less_than_a_tenth_of_the_title_makes_a_tenth():
  target = _product("a", name=" ".join("abcdefghijk"))
  assert score_lib.type_factor(target, _product("b", name="a")) == 0.1
  # Nothing to compare with counts as a fifth.
  assert score_lib.type_factor(_product("a", name=""), target) == 1.0


def test_every_golden_purchase_has_its_scores(catalog, shared_dir):
  path = shared_dir / "golden" / "webshop_scores.json"
  if not path.is_file():
    pytest.skip(f"no file {path}")
  rows = json.loads(path.read_text(encoding="utf-8"))
  assert len(rows) >= 240
  for row in rows:
    found = catalog.score(row["goal_index"], row["asin"], row["options"])
    assert found.small == pytest.approx(row["small_score"], abs=1e-6), row
    assert found.official == pytest.approx(row["full_task_score"], abs=1e-6)
    assert found.success == row["full_success"]


def test_all_6910_goals_come_back_from_the_products(catalog, webshop_dir):
  lines = _lines(webshop_dir / "goals_6910.jsonl.gz")
  assert len(lines) == len(catalog.goals) == 6910
  for goal, line in zip(catalog.goals, lines, strict=True):
    made = dataclasses.asdict(goal) | {"attributes": list(goal.attributes)}
    assert made == line


@pytest.mark.slow
def test_purchases_have_the_scores_of_an_independent_path(catalog, webshop_dir):
  goals = _lines(webshop_dir / "goals_6910.jsonl.gz")
  records = _json(webshop_dir / "items_shuffle_1000.recovered.json.gz")
  asked = _json(webshop_dir / "items_ins_v2_1000.json.gz")
  attributes = {asin: row["attributes"] for asin, row in asked.items()}
  by_asin = {record["asin"]: record for record in records}
  by_query = {}
  for record in records:
    by_query.setdefault(record["query"].lower(), []).append(record)
  rng = random.Random(7)
  perfect = 0
  for number in range(600):
    goal = rng.choice(goals)
    target = by_asin[goal["asin"]]
    # A third buys the right thing, a third its like, a third anything.
    pool = ([target], by_query[target["query"].lower()], records)[number % 3]
    record = rng.choice(pool)
    options = {
      name: rng.choice(values)
      for name, values in webshop_slow.options_of(record).items()
      if rng.random() < 0.8
    }
    if number % 6 == 0:
      options = goal["goal_options"]
    found = catalog.score(goal["goal_index"], record["asin"], options)
    has = attributes[record["asin"]]
    small = webshop_slow.small(goal, record, has, options)
    assert found.small == pytest.approx(small, abs=1e-9)
    full = webshop_slow.official(goal, target, record, attributes, options)
    assert found.official == pytest.approx(full, abs=1e-9)
    perfect += found.success
  assert 100 <= perfect <= 400


def test_what_a_goal_was_made_from_reaches_one_by_both_rules(catalog):
  for goal in catalog.goals:
    found = catalog.score(goal.goal_index, goal.asin, goal.goal_options)
    assert found == pytest.approx((1.0, 1.0, True))


def test_unknown_goals_and_products_are_named(catalog):
  asin = catalog.goals[0].asin
  with pytest.raises(ValueError, match="goal_index must be below 6910"):
    catalog.score(6910, asin, {})
  with pytest.raises(ValueError, match="goal_index must be below 6910"):
    catalog.score(-1, asin, {})
  with pytest.raises(ValueError, match="no product 'nothing'"):
    catalog.score(0, "nothing", {})
