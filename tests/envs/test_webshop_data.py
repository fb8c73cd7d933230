"""The published files, whole and broken, and the splits of their goals."""

import gzip
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.envs.webshop import catalog as webshop_catalog
from steppo_jax.envs.webshop import data as webshop_data
from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import tasks as webshop_tasks

_RECORD = {
  "asin": "B000000001",
  "name": "Desk Lamp",
  "full_description": "It shines.",
  "small_description": ["It dims.", " "],
  "product_category": "Home › Light",
  "average_rating": 4.5,
  "customization_options": {
    "Color": [{"value": "Red/White "}, {"value": "Blue"}, {"value": "BLUE"}],
    "Size": None,
  },
  "category": "home",
  "query": "Lamps",
  "pricing": "$1,044.50$33.98",
  "brand": "Lumo",
}
_ASKED = {
  "attributes": ["dimmable", "solid wood"],
  "instruction": "Find me  dimmable lamps",
  "instruction_attributes": ["dimmable"],
}


def _write(folder, records, asked, packed=False):
  for name, value in (
    ("items_shuffle_1000.json", records),
    ("items_ins_v2_1000.json", asked),
  ):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    if packed:
      (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    else:
      (folder / name).write_bytes(data)
  return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_product_is_read_as_it_is_sold(tmp_path, packed):
  _write(tmp_path, [_RECORD], {"B000000001": _ASKED}, packed)
  (product,) = webshop_env.load_catalog(tmp_path).products
  assert product.choices == {"color": ("red | white", "blue", "blue")}
  assert product.options == {"color": ("red | white", "blue")}
  assert product.price == 33.98
  assert product.price_text == "$1044.50 to $33.98"
  assert product.features == ("It dims.",)
  assert product.rating == "4.5"
  assert product.instruction == "find me dimmable lamps"
  assert product.text == (
    "desk lamp lumo home › light home lamps it shines. it dims. dimmable "
    "solid wood color red | white blue"
  )


def test_goals_are_all_combinations_and_repeat_what_is_repeated(tmp_path):
  _write(tmp_path, [_RECORD], {"B000000001": _ASKED})
  catalog = webshop_env.load_catalog(tmp_path)
  assert sorted(goal.instruction for goal in catalog.goals) == [
    *["find me dimmable lamps with color: blue"] * 2,
    "find me dimmable lamps with color: red | white",
  ]
  # 1.5 * 33.98 + 1 = 51.97
  assert {goal.price_upper for goal in catalog.goals} == {51.97}


def test_a_product_nobody_asks_for_has_no_goal_and_costs_100(tmp_path):
  record = {"asin": "b1", "name": "", "customization_options": ""}
  _write(tmp_path, [record], {"b2": _ASKED})
  catalog = webshop_env.load_catalog(tmp_path)
  assert catalog.goals == ()
  assert catalog.products[0].price_text == "$100.00"


def _change(**fields):
  return {**_RECORD, **fields}


@pytest.mark.parametrize(
  ("records", "message"),
  [
    ({}, "expected a JSON array"),
    ([], "holds no product"),
    ([7], r"product 0 \(None\): expected a JSON object"),
    ([_RECORD, _RECORD], "'b000000001' appears twice"),
    ([_change(asin=" ")], "product 0 .*asin is missing or empty"),
    ([{"asin": "b1"}], r"product 0 \(b1\): name is missing"),
    ([_RECORD, _change(asin="b2", name=["x"])], r"1 \(b2\): name must be text"),
    ([_change(name="half \ud800")], "half of a surrogate pair"),
    ([_change(query={})], "query must be text, got dict"),
    ([_change(pricing=True)], "pricing must be text, got bool"),
    ([_change(pricing="9" * 400)], "is not a price"),
    ([_change(small_description=[1])], "must be a list of texts"),
    ([_change(customization_options=[1])], "must be an object, got list"),
    ([_change(customization_options={"a": "b"})], r"\['a'\] must be a list"),
    ([_change(customization_options={"a": ["b"]})], "a list of objects"),
    ([_change(customization_options={"a": [{}]})], "with 'value'"),
    (b'[{"asin": "\xff"}]', "is not valid JSON: 'utf-8'"),
    (b"[{", "is not valid JSON"),
    (b"[" * 100_000, "is not valid JSON"),
    (b"", "is not valid JSON"),
  ],
)
def test_broken_products_are_named(tmp_path, records, message):
  _write(tmp_path, records, {"B000000001": _ASKED})
  with pytest.raises(ValueError, match=message):
    webshop_env.load_catalog(tmp_path)


@pytest.mark.parametrize(
  ("asked", "message"),
  [
    ([], "expected a JSON object"),
    ({"B000000001": 3}, "product 0 .*expected a JSON object"),
    ({"B000000001": {"attributes": 3.5, "instruction": []}}, "instruction"),
    ({"B000000001": {"instruction": "x"}}, "instruction_attributes is empty"),
    ({"B000000001": {**_ASKED, "attributes": [None]}}, "attributes must be"),
  ],
)
def test_broken_instructions_are_named(tmp_path, asked, message):
  _write(tmp_path, [_RECORD], asked)
  with pytest.raises(ValueError, match=message):
    webshop_env.load_catalog(tmp_path)


def test_too_many_combinations_are_not_listed(tmp_path):
  values = [{"value": str(k)} for k in range(50)]
  options = {name: values for name in "abcdefgh"}
  _write(
    tmp_path, [_change(customization_options=options)], {"B000000001": _ASKED}
  )
  with pytest.raises(ValueError, match="combinations of options, at most"):
    webshop_env.load_catalog(tmp_path)


def test_missing_folders_and_files_say_what_to_do(tmp_path):
  with pytest.raises(ValueError, match="set data_dir to a folder with items_"):
    webshop_env.load_catalog(tmp_path / "nowhere")
  (tmp_path / "other.txt").touch()
  with pytest.raises(ValueError, match=r"has no items_.*; it has other\.txt"):
    webshop_env.load_catalog(tmp_path)


def test_a_cut_off_file_is_named(tmp_path):
  _write(tmp_path, [_RECORD], {"B000000001": _ASKED}, packed=True)
  path = tmp_path / "items_shuffle_1000.json.gz"
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(ValueError, match=r"1000\.json\.gz cannot be read"):
    webshop_env.load_catalog(tmp_path)


_JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=9), inner, max_size=3)
  ),
  max_leaves=8,
)


@hypothesis.given(
  st.dictionaries(st.sampled_from(sorted(_RECORD)), _JSON, max_size=4),
  st.dictionaries(st.sampled_from(sorted(_ASKED)), _JSON, max_size=2),
)
def test_any_record_is_sold_or_refused_with_a_reason(fields, asked):
  try:
    product = webshop_data.product({**_RECORD, **fields}, {**_ASKED, **asked})
    goals = webshop_catalog.goals_of([product])
  except ValueError:  # Anything else would be an error of ours.
    return
  catalog = webshop_catalog.Catalog([product], goals)
  for goal in goals:
    found = catalog.score(goal.goal_index, product.asin, goal.goal_options)
    assert 0.0 <= found.official <= 1.0
    assert 0.0 <= found.small <= 1.0


@pytest.fixture(scope="module")
def webshop_dir(shared_dir):
  path = shared_dir / "data" / "webshop"
  if not path.is_dir():
    pytest.skip(f"no published products at {path}")
  return path


def _asins(data_dir, tasks):
  goals = webshop_env.load_catalog(data_dir).goals
  return [goals[task.payload["goal"]].asin for task in tasks]


@pytest.mark.slow
def test_the_index_split_is_the_public_one(webshop_dir):
  train = webshop_env.load_tasks(webshop_dir, "train", by="index")
  test = webshop_env.load_tasks(webshop_dir, "test", by="index")
  assert [t.payload["goal"] for t in train + test] == list(range(6910))
  assert len(test) == 200
  # Why there is another split: nearly every product is trained on.
  trained = set(_asins(webshop_dir, train))
  tested = set(_asins(webshop_dir, test))
  assert (len(tested), len(tested & trained)) == (85, 79)


@pytest.mark.slow
def test_the_product_split_keeps_products_apart(webshop_dir):
  splits = {
    split: webshop_env.load_tasks(webshop_dir, split)
    for split in webshop_env.SPLITS["product"]
  }
  asins = {s: set(_asins(webshop_dir, tasks)) for s, tasks in splits.items()}
  assert sum(map(len, splits.values())) == 6910
  assert not asins["valid_unseen"] & (asins["train"] | asins["valid_seen"])
  assert 60 <= len(asins["valid_unseen"]) <= 110
  assert 150 <= len(splits["valid_seen"]) <= 450
  # What a customer asks for twice is in one split.
  said = {s: {t.payload["instruction"] for t in v} for s, v in splits.items()}
  assert not said["train"] & said["valid_seen"]


@pytest.mark.slow
def test_the_public_split_can_be_sampled_and_pinned(webshop_dir):
  tasks = webshop_tasks.shopping("tiny", str(webshop_dir), by="index")
  first = tasks.sample(6, seed=1, update=2)
  assert tasks.sample(6, seed=1, update=2) == first
  assert len({task.uid for task in tasks.panel("test", 200)}) == 200


def test_unknown_splits_are_refused(webshop_dir):
  with pytest.raises(ValueError, match=r"'test' is none of train, valid_seen"):
    webshop_env.load_tasks(webshop_dir, "test")
  with pytest.raises(ValueError, match="by must be one of index, product"):
    webshop_env.load_tasks(webshop_dir, "train", by="luck")
