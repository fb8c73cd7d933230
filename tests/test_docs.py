"""What the documents say of the code, held against the code."""

import ast
import dataclasses
import pathlib
import re
import tomllib

import pytest

from steppo_jax.algorithms import table as algorithms_table
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
  return sorted(row.wants)


def test_there_is_one_section_for_every_row_and_none_besides():
  headings = re.findall(r"^### `(\w+)`$", ALGORITHMS_MD, flags=re.M)
  assert sorted(headings) == sorted(algorithms_table.ALGORITHMS)


@pytest.mark.parametrize("name", algorithms_table.ALGORITHMS)
def test_a_section_says_what_the_row_says(name):
  row, text = algorithms_table.get(name), sections()[name]
  assert item(text, "Row") == f"`{fields_of(row)}`"
  needs = item(text, "Needs")
  assert needs == (", ".join(needs_of(row)) or "nothing else")
  assert item(text, "Evidence") == row.evidence
  assert item(text, "Source").startswith(row.source)
  # One paragraph in words, and an equation.
  assert re.search(r"^[A-Z].{40}", text, flags=re.M)
  assert re.search(r"^    \S", text, flags=re.M)


def test_the_readme_counts_the_algorithms():
  text = (ROOT / "README.md").read_text()
  told = re.findall(r"(\d+) algorithms|methods named \| (\d+),", text)
  assert len(told) >= 4
  assert {int(a or b) for a, b in told} == {len(algorithms_table.ALGORITHMS)}


def test_the_reconstructions_are_listed_together():
  said = re.search(r"^Reconstructed rows: (.*?)\.$", ALGORITHMS_MD, flags=re.M)
  assert re.findall(r"`(\w+)`", said[1]) == [
    name
    for name, row in algorithms_table.ALGORITHMS.items()
    if row.evidence == "reconstruction"
  ]


def test_names_in_code_style_that_look_like_options_exist():
  fields = {f.name for f in dataclasses.fields(algorithms_table.Algorithm)}
  options = {
    k for r in algorithms_table.ALGORITHMS.values() for k, _ in r.options
  }
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


def test_the_causes_of_time_that_are_explained_are_those_that_are_counted():
  text = (ROOT / "docs" / "monitoring.md").read_text()
  section = text.split("## Where the time")[1].split("\n## ")[0]
  causes = re.findall(r"^\| (\w+) \| ", section, re.M)
  assert set(events.CAUSES) | {"cause", "idle"} == set(causes)


ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def found_in_repository(path):
  """A path as documents write it: from the root, or from the package."""
  for folder in (ROOT, ROOT / "steppo_jax"):
    if (folder / path).exists():
      return folder / path
  return None


def names_defined_in(path):
  """Functions, classes, methods and constants of a file, "Class.method"."""
  named = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      named.add(node.name)
    if isinstance(node, ast.ClassDef):
      inside = [n for n in node.body if isinstance(n, ast.FunctionDef)]
      named |= {f"{node.name}.{method.name}" for method in inside}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    named |= {target.id for target in targets if isinstance(target, ast.Name)}
  return named


def test_files_and_functions_that_the_architecture_names_exist():
  named = re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", ARCHITECTURE)
  assert len(named) > 80
  for path, name in named:
    file = found_in_repository(path)
    assert file is not None, path
    if name:
      assert name in names_defined_in(file), f"{path}:{name}"


def test_the_design_names_files_that_lie_in_their_folders():
  text = (ROOT / "docs" / "design.md").read_text()
  rows = re.findall(r"^\| \d \| `(\w+)/` \| (.*)", text, flags=re.M)
  assert len(rows) > 15
  for folder, inside in rows:
    for name in re.findall(r"`(\w+\.py)`", inside):
      assert (ROOT / "steppo_jax" / folder / name).exists(), f"{folder}/{name}"


def test_the_architecture_draws_the_layers_that_are_enforced():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())
  contracts = project["tool"]["importlinter"]["contracts"]
  layers = contracts[0]["layers"]
  drawn = re.findall(r"^    (\d)  (\S.*)$", ARCHITECTURE, flags=re.M)
  assert [int(number) for number, _ in drawn] == [*range(len(layers), 0, -1)]
  for (_, row), layer in zip(drawn, layers, strict=True):
    rooms = {re.sub(r"(\.py|/)$", "", name) for name in row.split()}
    assert rooms == {
      name.strip().removeprefix("steppo_jax.")
      for name in re.split("[|:]", layer)
    }
