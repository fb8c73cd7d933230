"""Blocks that a page marks as runnable run as they stand there.

"```python file=NAME" is a file, "```python runnable" a program that may read
the files of its page. Of the tutorial on environments the commands run too.
"""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import agent_runs
import pytest
import small_runs

from steppo_jax.storage import metrics

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
  page
  for page in sorted((ROOT / "docs").rglob("*.md"))
  if re.search(r"^```\w+ (runnable|file=)", page.read_text(), re.M)
]
TUTORIAL = ROOT / "docs" / "tutorial" / "own_environment.md"


def blocks(page, mark):
  """(mark, text) of the blocks whose fence has it, in their order."""
  pattern = rf"^```\w+ ({mark}\S*)\n(.*?)^```"
  return re.findall(pattern, page.read_text(), re.M | re.S)


def written(page, folder):
  for mark, text in blocks(page, "file="):
    (folder / mark.removeprefix("file=")).write_text(text)


def environment(folder):
  paths = (str(folder), str(ROOT))
  return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, tmp_path):
  written(page, tmp_path)
  for file in tmp_path.glob("*.py"):
    compile(file.read_text(), file.name, "exec")
  code = "".join(text for _, text in blocks(page, "runnable"))
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path),
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-1500:]


def test_there_are_pages_with_such_blocks():
  assert {page.stem for page in PAGES} >= {
    "own_environment", "own_agent", "research",
  }  # fmt: skip
  marks = re.findall(r"^```\w+ (.*)$", TUTORIAL.read_text(), re.M)
  assert all(re.fullmatch(r"runnable|file=[\w.]+", mark) for mark in marks)


@pytest.mark.slow
def test_the_environment_of_the_tutorial_is_trained_as_it_says(tmp_path):
  """Its commands with fewer steps; installed as pip would install it."""
  written(TUTORIAL, tmp_path)
  project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
  folder = tmp_path / "buttons-0.1.dist-info"
  folder.mkdir()
  (folder / "METADATA").write_text("Name: buttons\nVersion: 0.1\n")
  (folder / "entry_points.txt").write_text(
    "".join(
      f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
      for group, points in project["entry-points"].items()
    )
  )
  commands = re.findall(
    r"^    python -m steppo_jax (train \S+)$", TUTORIAL.read_text(), re.M
  )
  assert commands == ["train buttons_start.py", "train buttons_steppo.py"]
  for command, fewer in zip(
    commands,
    (["training.num_steps=6"], ["num_updates=1", "tasks_per_update=8"]),
    strict=True,
  ):
    done = subprocess.run(
      [sys.executable, "-m", "steppo_jax", *command.split(), *fewer,
       "evaluation.episodes=4"],
      cwd=tmp_path, env=environment(tmp_path),
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
  assert (tmp_path / "buttons_start.safetensors").exists()


@pytest.mark.slow
def test_the_agent_of_the_tutorial_is_trained(tmp_path, monkeypatch):
  """A tiny model answers it, and what it prints is what it is paid for."""
  page = ROOT / "docs" / "tutorial" / "own_agent.md"
  written(page, tmp_path)
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)
  folder = agent_runs.model(tmp_path / "model")
  command = f"{sys.executable} {tmp_path / 'my_agent.py'}"
  run = small_runs.run(agent_runs.options(folder, tmp_path, command=command))
  lines = metrics.read_jsonl(run / "metrics.jsonl")
  trained = [line for line in lines if "rollout/error_share" in line]
  assert len(trained) == 2
  assert [line["rollout/error_share"] for line in trained] == [0.0, 0.0]
