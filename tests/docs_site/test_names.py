"""Options, files and modules that the pages name are there."""

import pathlib
import re
import sys

import pytest

from steppo_jax.training import config

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import pages  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "benchmarks|docs|experiments|notebooks|steppo_jax|tests|tpu"
OPTIONS = {
  *config.keys(config.RunConfig(weights="x")),
  *config.keys(config.SupervisedRun()),
}
GROUPS = {name.partition(".")[0] for name in OPTIONS if "." in name}


def code(page):
  """All code of a page: what is indented, fenced, or between backticks."""
  text = page.read_text()
  fenced = re.findall(r"^```.*?^```", text, re.M | re.S)
  text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
  return [
    *fenced,
    *re.findall(r"^(?: {4}|\t).*", text, re.M),
    *re.findall(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`", text),
  ]


def commands(page):
  """Command lines of a page, those that go on over several lines whole."""
  text = re.sub(r"\\\n\s*", "", page.read_text())
  lines = re.findall(
    r"^(?: {4}|.*`).*?python -m steppo_jax ([^`\n]*)", text, re.M
  )
  return [line.partition("#")[0].partition("|")[0].split() for line in lines]


def there(dotted):
  """Whether a module of the package, and what it is asked for, exist."""
  *names, last = dotted.split(".")
  base = ROOT.joinpath("steppo_jax", *names)
  if (base / f"{last}.py").exists() or (base / last).is_dir():
    return True
  return base.with_suffix(".py").exists() or (
    len(names) > 1 and there(".".join(names))
  )


def test_there_are_names_to_check():
  assert {"env", "learner", "rollout"} <= GROUPS
  assert len(PAGES) > 30
  assert there("learner.spec.Model")
  assert not there("learner.spek")


@pytest.mark.parametrize(
  "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_what_a_page_names_exists(page):
  parts = code(page)
  for part in parts:
    paths = re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w/.-]*\w", part)
    for path in paths:
      if not re.search(r"weights/|datasets/\w+$", path):
        assert (ROOT / path).exists(), path
    groups = "|".join(sorted(GROUPS))
    # Calls and files are no options.
    named = rf"(?<![\w./])(?:{groups})\.[a-z_][\w.]*(?![\w.(])"
    for name in re.findall(named, part):
      name = name.rstrip(".")
      if name.endswith((".py", ".jsonl")):
        continue
      group = any(option.startswith(f"{name}.") for option in OPTIONS)
      assert name in OPTIONS or group or there(name), name


@pytest.mark.parametrize(
  "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_commands_that_a_page_shows_have_the_options_that_it_gives(page):
  parsers = pages.parsers()
  for words in commands(page):
    name = " ".join(words[:2]) if " ".join(words[:2]) in parsers else words[0]
    if name == "..." or name.isupper() or name.startswith("-"):
      continue
    assert name in parsers, words
    known = parsers[name]._option_string_actions
    given = [word.partition("=")[0] for word in words if word[:2] == "--"]
    assert not set(given) - set(known) - {"--help"}, words
