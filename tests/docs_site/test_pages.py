"""Pages that are made from the code hold all of it; links lead somewhere."""

import pathlib
import re
import sys

import pytest

from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.training import config

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import build  # noqa: E402
import pages  # noqa: E402

PAGES = sorted(
  [ROOT / name for name in build.ELSEWHERE] + [*(ROOT / "docs").rglob("*.md")]
)


def slugs(page):
  """The anchors of a page, as GitHub and MyST make them of headings."""
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
  titles = re.findall(r"^#+ (.*)$", text, re.M)
  words = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
  return {word.replace(" ", "-") for word in words}


def links(page):
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
  return re.findall(r"\]\(([^)]*)\)", text)


@pytest.mark.parametrize(
  "page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_links_lead_to_files_headings_and_well_formed_addresses(page):
  build.relinked(page.read_text(), page)
  for link in links(page):
    if "://" in link:
      assert re.fullmatch(r"https://[\w.-]+(/[^\s<>\"]*)?", link), link
      continue
    file, _, anchor = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    assert target.exists(), link
    if anchor:
      assert anchor in slugs(target), link


def test_a_link_to_no_file_or_to_no_page_stops_the_build():
  page = ROOT / "docs" / "index.md"
  with pytest.raises(ValueError, match=r"links to gone\.md: no such file"):
    build.relinked("[x](gone.md)", page)
  with pytest.raises(ValueError, match=r"Makefile is no page"):
    build.relinked("[x](../Makefile)", page)
  moved = build.relinked("[a](../ARCHITECTURE.md#layers)", page)
  assert moved == "[a](architecture.md#layers)"


def test_every_page_stands_once_in_the_contents():
  listed = [name for names in build.CONTENTS.values() for name in names]
  staged = {
    build.staged(page).with_suffix("").as_posix() for page in PAGES
  } - {"index"}  # fmt: skip
  made = {"options", "commands", "api/index"}
  assert sorted(listed) == sorted(staged | made)


def test_every_option_is_listed_with_its_meaning():
  found = re.findall(r"^\| `([\w.]+)` \| .* \| (.*) \|$", pages.options(), re.M)
  names = [name for name, _ in found]
  runs = config.keys(config.RunConfig(weights="x"))
  supervised = config.keys(config.SupervisedRun())
  assert not {*runs, *supervised} - set(names)
  assert names.count("learner.learning_rate") == 1
  assert not [name for name, meaning in found if len(meaning) < 4]


def test_every_command_is_listed_with_its_arguments():
  text = pages.commands()
  for name in ("train", "experiments", "serve policy", "pool", "convert"):
    assert f"\n## {name}\n" in text
  for argument in ("--many-hosts", "--copy FILE", "--pass-at K", "--port"):
    assert f"`{argument}" in text
  assert str(ROOT) not in text
  parsers = pages.parsers()
  described = re.findall(r"^\| `.*` \| (.*) \|$", text, re.M)
  assert len(described) > 3 * len(parsers)
  assert not [line for line in described if len(line) < 3]


def test_an_algorithm_has_a_page_of_its_own():
  text = (ROOT / "docs" / "algorithms.md").read_text()
  rest, sections = build.split_algorithms(text)
  assert list(sections) == re.findall(r"^### `(\w+)`$", text, re.M)
  assert set(sections) == set(algorithms_table.ALGORITHMS)
  assert "## Modes" in rest
  assert "### Dynamic sampling" in rest
  page = pages.algorithm_page(
    "steppo", sections["steppo"], [("a.svg", "Told.")]
  )
  assert "    δₖ = rₖ + γ vₖ₊₁ - vₖ" in page
  assert "| `clip_high` | `0.0004` |" in page
  assert "![Success of `steppo` against updates](a.svg)" in page
  assert "what it learns is not measured" in pages.algorithm_page(
    "vetta", sections["vetta"], []
  )
