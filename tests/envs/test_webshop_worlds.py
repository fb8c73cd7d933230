"""Generated shops: solvable, unambiguous, and cleanly split."""

import hashlib
import itertools
import json
import subprocess
import sys

import pytest
from marks import some

from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import match as webshop_match
from steppo_jax.envs.webshop import tables as webshop_tables
from steppo_jax.envs.webshop import worlds as webshop_worlds

_SPLITS = ("train", "valid_seen", "valid_unseen")
# Changes with the tables and the generator, and with nothing else.
_DIGEST = "bca59ed7adf7f21d1144a25c43cbc5ea503b27eea7cfe0eb7d70643ce6a33233"


def _tasks(count, split="train", size="tiny"):
  return [
    webshop_worlds.generate(seed, split=split, size=size)
    for seed in range(count)
  ]


def _goal(task):
  catalog = webshop_worlds.shop(**task.payload["shop"])
  return catalog, catalog.goals[task.payload["goal"]]


@pytest.mark.parametrize(
  "size", some("tiny", "medium", slow=webshop_worlds.SIZES)
)
@pytest.mark.parametrize("split", _SPLITS)
def test_only_the_product_that_is_meant_fulfils_a_goal(size, split):
  for task in _tasks(8, split, size):
    catalog, goal = _goal(task)
    for product in catalog.products:
      # The best choice of options that this product allows.
      options = {
        name: goal.goal_options.get(name)
        if goal.goal_options.get(name) in values
        else values[0]
        for name, values in product.options.items()
      }
      found = catalog.score(goal.goal_index, product.asin, options)
      meant = product.asin == goal.asin
      assert found.success == meant
      assert (found.small > 0.999) == meant


@pytest.mark.slow
@pytest.mark.parametrize("split", some("valid_unseen", slow=_SPLITS))
def test_every_shop_has_customers_and_page_limits(split):
  for size, (counts, *_, page_size, shops) in webshop_worlds.SIZES.items():
    for number in range(min(shops, 64)):
      catalog = webshop_worlds.shop(size=size, split=split, number=number)
      assert counts[0] <= len(catalog.products) <= counts[1]
      assert len(catalog.goals) >= 2
      assert catalog.page_size == page_size
      assert [g.goal_index for g in catalog.goals] == list(
        range(len(catalog.goals))
      )


@pytest.mark.slow
def test_held_out_pairs_are_in_valid_unseen_alone():
  for size, split in itertools.product(webshop_worlds.SIZES, _SPLITS):
    for task in _tasks(40, split, size):
      _, goal = _goal(task)
      held_out = [
        webshop_worlds.is_held_out(goal.query, a) for a in goal.attributes
      ]
      assert any(held_out) == (split == "valid_unseen")


def test_no_two_splits_share_a_shop():
  seen = {}
  for split in _SPLITS:
    for number in range(64):
      shop = webshop_worlds.shop(size="tiny", split=split, number=number)
      names = tuple(sorted(p.name for p in shop.products))
      assert seen.setdefault(names, split) == split


def test_every_department_and_kind_is_sold():
  families = {task.family for task in _tasks(200)}
  assert families == set(webshop_tables.DEPARTMENTS)
  kinds = [
    k for *_, kinds in webshop_tables.DEPARTMENTS.values() for k in kinds
  ]
  assert len(kinds) == len(set(kinds)) == 36
  shop = webshop_worlds.shop(size="full", split="train", number=0)
  assert {p.query for p in shop.products} == set(kinds)


def test_what_can_be_asked_for_never_matches_anything_else():
  colour, ratio = webshop_match.colour, webshop_match.token_set_ratio
  values = [v for values in webshop_tables.OPTIONS.values() for v in values]
  for a, b in itertools.combinations(values, 2):
    assert ratio(colour(a), colour(b)) <= 85, (a, b)
  tables = webshop_tables.DEPARTMENTS.values()
  attributes = [a for _, some, _ in tables for a in some]
  for a, b in itertools.combinations(attributes, 2):
    assert ratio(a, b) <= 85, (a, b)
    assert a not in b
    assert b not in a


def test_tasks_say_everything_that_counts():
  for task in _tasks(50, size="small"):
    _, goal = _goal(task)
    said = task.payload["instruction"]
    assert task.payload["instruction"] == goal.instruction
    for text in (goal.query, *goal.attributes):
      assert text in said
    for name, value in goal.goal_options.items():
      assert f"{name}: {value}" in said
    assert f"less than {goal.price_upper:.0f} dollars" in said
    assert task.golden_steps == 3 + len(goal.goal_options)
    assert json.loads(json.dumps(task.payload)) == task.payload


def test_larger_shops_hide_an_attribute_from_the_title():
  shop = webshop_worlds.shop(size="medium", split="train", number=0)
  for product in shop.products:
    told = [a for a in product.attributes if a in product.name]
    assert len(told) == len(product.attributes) - 1
    features = " ".join(product.features)
    assert all(a in features for a in product.attributes)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_task_in_every_process():
  code = (
    "import hashlib, json; from steppo_jax.envs.webshop import worlds as w;"
    "out = [[t.uid, t.payload, t.golden_steps] for t in ("
    "  w.generate(n, split=s, size=z)"
    "  for n in range(5) for s in w.SPLITS for z in w.SIZES)];"
    "print(hashlib.sha256(json.dumps(out).encode()).hexdigest())"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, check=True, text=True
  )
  assert out.stdout.strip() == _DIGEST
  ours = [
    [task.uid, task.payload, task.golden_steps]
    for seed in range(5)
    for split in _SPLITS
    for size in webshop_worlds.SIZES
    for task in [webshop_worlds.generate(seed, split=split, size=size)]
  ]
  assert hashlib.sha256(json.dumps(ours).encode()).hexdigest() == _DIGEST


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"seed": -1}, "seed must be an integer of at least 0"),
    ({"seed": 1.5}, "seed must be an integer of at least 0"),
    ({"seed": True}, "seed must be an integer of at least 0"),
    ({"split": "test"}, "split must be one of train"),
    ({"size": "huge"}, "size must be one of tiny"),
  ],
)
def test_unknown_arguments_are_refused(arguments, message):
  arguments = {"seed": 0, "split": "train", "size": "tiny", **arguments}
  with pytest.raises(ValueError, match=message):
    webshop_worlds.generate(arguments.pop("seed"), **arguments)


def test_plans_search_for_what_the_customer_says():
  for task in _tasks(30, size="medium"):
    _, goal = _goal(task)
    first = webshop_env.plan(task)[0]
    assert goal.query in first
    assert all(a in first for a in goal.attributes)
