"""Builds the pages of `docs/` into a folder of HTML that needs no network.

    python docs/site/build.py            # into .docs/html
    python docs/site/build.py OUTPUT

Sources are staged first, in OUTPUT/source: the pages of `docs/`, a few that
stand elsewhere in the repository, and those that are made from the code. A
warning of the generator is an error, and so is a link to a file that is not
there.
"""

import os
import pathlib
import re
import shutil
import sys

import api
import curves
import experiments_page
import pages

import steppo_jax
from steppo_jax.algorithms import table as algorithms_table

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]

# Pages that stand outside of `docs/`, by their names on the site.
ELSEWHERE = {
  "ARCHITECTURE.md": "architecture.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
  "README.md": "index.md",
  "experiments/README.md": "experiments.md",
  "tpu/README.md": "tpu.md",
}

# The contents, by headings. Every page stands in one of them.
CONTENTS = {
  "Tutorial": (
    "tutorial/first_run", "tutorial/own_environment", "tutorial/own_agent",
    "tutorial/released_model", "tutorial/tpu_pod",
  ),
  "Understand": (
    "concepts", "algorithms", "differentiable", "research", "design",
    "architecture",
  ),
  "Use": (
    "environments", "worlds", "prompts", "datasets", "evaluation", "models",
    "model_files", "chat_formats", "optimizers",
    "agents", "sessions", "serving", "curl", "engines",
    "operations", "monitoring", "asynchronous",
    "viewer", "tpu", "errors",
  ),
  "Results": (
    "results", "comparison", "estimator_study", "performance", "beside_others",
    "machine",
  ),
  "Reference": (
    "commands", "options", "experiments", "api/index", "changelog",
    "contributing",
  ),
}  # fmt: skip

# Pages that are made from the code. Others link to the section "Reference" of
# the first page, which also exists where nothing was made.
REFERENCE = {
  "Commands": "commands.md",
  "Options": "options.md",
  "Experiments": "experiments.md",
  "API": "api/index.md",
}


def staged(path: pathlib.Path) -> pathlib.PurePosixPath:
  """Where a file of the repository stands among the sources.

  Raises:
    ValueError: there is no place for it.
  """
  name = path.relative_to(ROOT).as_posix()
  if name in ELSEWHERE:
    return pathlib.PurePosixPath(ELSEWHERE[name])
  if name.startswith("docs/"):
    return pathlib.PurePosixPath(name.removeprefix("docs/"))
  raise ValueError(f"{name} is no page: write its name as code, without a link")


def relinked(text: str, page: pathlib.Path) -> str:
  """A page whose links lead to where their targets are staged.

  Raises:
    ValueError: a link leads to a file that is not there.
  """

  def moved(match):
    target, anchor = match[2], match[3] or ""
    if re.match(r"\w+:", target) or not target:
      return match[0]
    file = (page.parent / target).resolve()
    if not file.exists():
      raise ValueError(
        f"{page.relative_to(ROOT)} links to {target}: no such file"
      )
    start = staged(page).parent
    return f"{match[1]}{os.path.relpath(staged(file), start)}{anchor})"

  return re.sub(r"(\]\()([^)#\s]*)(#[^)\s]*)?\)", moved, text)


def split_algorithms(text: str) -> tuple[str, dict[str, str]]:
  """docs/algorithms.md without its sections of rows, and these by name.

  In place of the sections under a heading stand links to their own pages.
  """
  sections = {}

  def link(match):
    sections[match[1]] = match[2]
    return f"- [`{match[1]}`](algorithms/{match[1]}.md)\n"

  rest = re.sub(r"^### `(\w+)`\n((?:(?!^##).*\n)*)", link, text, flags=re.M)
  return rest, sections


def stage(source: pathlib.Path) -> None:
  """Writes all sources below a folder, which is emptied first."""
  shutil.rmtree(source, ignore_errors=True)
  files = [ROOT / name for name in ELSEWHERE if name != "README.md"]
  files += [
    file
    for file in sorted((ROOT / "docs").rglob("*"))
    if file.is_file() and HERE not in file.parents
  ]
  for file in files:
    target = source / staged(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".md":
      target.write_text(relinked(file.read_text(), file))
    else:
      shutil.copy(file, target)
  _algorithms(source)
  _reference(source)
  _contents(source)


def _algorithms(source: pathlib.Path) -> None:
  page = source / "algorithms.md"
  rest, sections = split_algorithms(page.read_text())
  if set(sections) != set(algorithms_table.ALGORITHMS):
    raise ValueError("docs/algorithms.md has not one section for every row")
  folder = source / "algorithms"
  folder.mkdir()
  plots = curves.draw(ROOT / "docs" / "compare", folder)
  for name, section in sections.items():
    text = re.sub(r"\]\((?=[\w/]+\.(md|png))", "](../", section)
    text = text.replace("](#", "](../algorithms.md#")
    text = pages.algorithm_page(name, text, plots.get(name, []))
    (folder / f"{name}.md").write_text(text)
  links = "\n".join(f"algorithms/{name}" for name in sections)
  page.write_text(rest + f"\n```{{toctree}}\n:hidden:\n\n{links}\n```\n")


def _reference(source: pathlib.Path) -> None:
  (source / "options.md").write_text(pages.options())
  (source / "commands.md").write_text(pages.commands())
  with (source / "experiments.md").open("a") as page:
    page.write(experiments_page.table(ROOT / "experiments"))
  folder = source / "api"
  folder.mkdir()
  (folder / "public.rst").write_text(api.public(steppo_jax._PUBLIC))
  (folder / "records.rst").write_text(api.records())
  package = ROOT / "steppo_jax"
  for name in api.FOLDERS:
    (folder / f"{name}.rst").write_text(api.page(package, name))
  names = "\n".join(["public", "records", *api.FOLDERS])
  (folder / "index.md").write_text(
    "# API\n\nThe functions and records of the package, folder by folder, from "
    "their docstrings.\n[Public names](public.rst) are those of `import "
    "steppo_jax`.\n\n"
    f"```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n"
  )


def _contents(source: pathlib.Path) -> None:
  index = source / "index.md"
  trees = [
    f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names)
    + "\n```\n"
    for caption, names in CONTENTS.items()
  ]  # fmt: skip
  links = "".join(f"- [{title}]({page})\n" for title, page in REFERENCE.items())
  index.write_text(f"{index.read_text()}\n{links}\n" + "\n".join(trees))


def main(output: pathlib.Path) -> int:
  """Stages and builds; returns the generator's status."""
  from sphinx.cmd import build as sphinx_build  # Not needed for staging.

  stage(output / "source")
  html = output / "html"
  shutil.rmtree(html, ignore_errors=True)
  arguments = [
    "-q", "-W", "--keep-going", "-b", "html", "-c", str(HERE),
    "-d", str(output / "doctrees"), str(output / "source"), str(html),
  ]  # fmt: skip
  status = sphinx_build.main(arguments)
  if status == 0:
    print(f"written: {html / 'index.html'}")
  return status


if __name__ == "__main__":
  where = sys.argv[1] if len(sys.argv) > 1 else ROOT / ".docs"
  sys.exit(main(pathlib.Path(where)))
