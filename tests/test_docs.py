"""What the documents say of the code, held against the code."""

import dataclasses
import pathlib
import re
import tomllib

import pytest

from steppo_jax.algorithms import table as algorithms
from steppo_jax.storage import events

ROOT = pathlib.Path(__file__).parents[1]
ALGORITHMS_MD = (ROOT / "docs" / "algorithms.md").read_text()


def sections():
  """Text of each algorithm by name: what follows its own heading."""
  parts = re.split(r"^### `(\w+)`$", ALGORITHMS_MD, flags=re.M)
  # A section also ends at the next heading of a higher level.
  texts = [re.split(r"^## ", text, flags=re.M)[0] for text in parts[2::2]]
  return dict(zip(parts[1::2], texts, strict=True))


def item(text, name):
  """The folded text of the list item "- Name: ..."."""
  found = re.search(rf"^- {name}: (.*(?:\n  .*)*)", text, flags=re.M)
  assert found, f"no item {name!r} in {text[:60]!r}"
  return " ".join(found[1].split())


def fields_of(row):
  """The fields of a row that are not left at their defaults, as in Python."""
  hidden = {"source", "evidence", "needs"}
  return ", ".join(
    f"{field.name}={getattr(row, field.name)!r}"
    for field in dataclasses.fields(row)
    if field.name not in hidden and getattr(row, field.name) != field.default
  )


def needs_of(row):
  """Everything `check_needs` would ask a run for."""
  needs = [*row.needs]
  needs += ["critic"] if row.critic else []
  needs += ["reference"] if row.kl_coef and "reference" not in needs else []
  return sorted(needs)


def test_there_is_one_section_for_every_row_and_none_besides():
  headings = re.findall(r"^### `(\w+)`$", ALGORITHMS_MD, flags=re.M)
  assert sorted(headings) == sorted(algorithms.ALGORITHMS)


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_section_says_what_the_row_says(name):
  row, text = algorithms.get(name), sections()[name]
  assert item(text, "Row") == f"`{fields_of(row)}`"
  needs = item(text, "Needs")
  assert needs == (", ".join(needs_of(row)) or "nothing else")
  assert item(text, "Evidence") == row.evidence
  assert item(text, "Source").startswith(row.source)
  # One paragraph in words, and an equation.
  assert re.search(r"^[A-Z].{40}", text, flags=re.M)
  assert re.search(r"^    \S", text, flags=re.M)


def test_the_reconstructions_are_listed_together():
  said = re.search(r"^Reconstructed rows: (.*?)\.$", ALGORITHMS_MD, flags=re.M)
  assert re.findall(r"`(\w+)`", said[1]) == [
    name
    for name, row in algorithms.ALGORITHMS.items()
    if row.evidence == "reconstruction"
  ]


def test_names_in_code_style_that_look_like_options_exist():
  fields = {f.name for f in dataclasses.fields(algorithms.Algorithm)}
  options = {k for r in algorithms.ALGORITHMS.values() for k, _ in r.options}
  named = set(re.findall(r"`(\w+)=", ALGORITHMS_MD))
  named |= set(re.findall(r"`replace\(row, (\w+)=", ALGORITHMS_MD))
  assert named <= fields | options | {"bootstrap", "last"}


def test_the_floor_pins_the_oldest_releases_that_are_allowed():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  lowest = dict(
    line.split(">=") for line in project["dependencies"] if ">=" in line
  )
  lines = (ROOT / "constraints-jax-floor.txt").read_text().splitlines()
  pins = dict(line.split("==") for line in lines if line[:1] not in ("", "#"))
  assert pins.pop("jaxlib") == pins["jax"]
  assert set(pins) >= {"jax", "flax"}
  assert pins == {name: lowest[name] for name in pins}


def test_the_tests_that_a_promise_names_exist():
  text = (ROOT / "docs" / "operations.md").read_text()
  named = set(re.findall(r"`(tests/[\w/.]+)`", text))
  assert len(named) > 8
  assert not {name for name in named if not (ROOT / name).exists()}
  causes = re.findall(
    r"^\| (\w+) \| ", text.split("## Where the time")[1], re.M
  )
  assert set(events.CAUSES) | {"cause", "idle"} == set(causes)
