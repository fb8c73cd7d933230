"""Every message of the page on errors is one that the code raises."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "errors.md").read_text()
MESSAGES = re.findall(r"^### `(.*)`$", TEXT, re.M)
# Files that test names or that only repeat others' words raise nothing here.
FILES = sorted((ROOT / "steppo_jax").rglob("*.py"))


def raised(node):
  """The text of a string in code, with "\\0" where a value is put in."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  if isinstance(node, ast.JoinedStr):
    return "".join(raised(part) for part in node.values)
  return "\0"


@pytest.fixture(scope="module")
def texts():
  """All strings of the package that are not docstrings."""
  found = set()
  for file in FILES:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.Constant | ast.JoinedStr):
        found.add(raised(node))
  # A docstring spans lines; a message is one.
  return "\n".join(text for text in sorted(found) if "\n" not in text)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_still_raises_it(texts, message):
  """Its fixed parts stand in one string, in this order."""
  parts = [
    part for part in re.split(r"\.\.\.", message) if part.strip(" ,.;:()")
  ]
  assert parts
  pattern = "[^\n]*?".join(re.escape(part) for part in parts)
  assert re.search(pattern, texts), message


def test_there_are_enough_and_none_twice():
  assert len(MESSAGES) > 20
  assert len(set(MESSAGES)) == len(MESSAGES)


def test_each_is_followed_by_what_to_do():
  for section in re.split(r"^### ", TEXT, flags=re.M)[1:]:
    body = section.partition("\n")[2].split("\n## ")[0]
    assert len(body.split()) > 10, section[:60]
