"""The command `pool`, on a pool of episodes that were really played."""

import json

import pytest
import worlds

from steppo_jax import __main__ as cli
from steppo_jax import types
from steppo_jax.datasets import trajectories as trajectories_lib
from steppo_jax.rollout import journal
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.storage import folder as run_folder


@pytest.fixture
def run(tmp_path):
  """A run's folder whose pool holds three episodes, one still to be played."""
  folder = tmp_path / "run"
  with pool_lib.Pool(folder / run_folder.POOL_NAME) as pool:
    for n, one in enumerate(worlds.trajectories(2)):
      pool.issue(f"g{n}", one.task, [(one.uid, (0, n), 0)])
      pool.start("agent", 60)
      pool.finish(one, "agent", labels={"n": str(n)})
    pool.issue("g9", types.Task("t", "e", "f", {}), [("late", (1,), 0)])
  return folder


def told(capsys, *argv, status=0):
  assert cli.main(["pool", *map(str, argv)]) == status
  return capsys.readouterr()


def test_episodes_are_listed_labelled_and_excluded(run, capsys):
  lines = told(capsys, run).out.splitlines()
  assert [line.split()[:2] for line in lines] == [
    ["uid", "state"], ["e0-0", "ready"], ["e1-0", "ready"], ["late", "issued"],
  ]  # fmt: skip
  told(capsys, run, "label", "e0-0", "--set", "good=yes")
  (_, line) = told(capsys, run, "--label", "good=yes").out.splitlines()
  assert line.split()[0] == "e0-0"
  assert line.endswith("good=yes,n=0")
  told(capsys, run, "exclude", "--label", "n=1")
  found = told(capsys, run, "--state", "failed")
  assert "failed:excluded" in found.out
  assert "1 ready" in found.err
  assert "1 failed/excluded" in found.err


def test_what_was_excluded_is_exported_only_if_it_is_named(
  run, capsys, tmp_path
):
  def exported(*more):
    file = tmp_path / "out.jsonl"
    told(capsys, run, "export", *more, "--jsonl", file)
    return [json.loads(line)["uid"] for line in file.read_text().splitlines()]

  assert exported() == ["e0-0", "e1-0"]
  told(capsys, run, "exclude", "e0-0")
  assert exported() == ["e1-0"]
  told(capsys, run, "label", "e1-0", "--set", "verdict=exclude")
  assert exported() == []
  assert exported("e0-0") == ["e0-0"]
  assert exported("--state", "failed") == ["e0-0"]


def test_episodes_are_exported_with_all_their_tokens(run, capsys, tmp_path):
  file = tmp_path / "out.jsonl"
  told(
    capsys, run, "export", "--jsonl", file,
    "--tfds", tmp_path / "data" / "mine", "--tokenizer", "household",
  )  # fmt: skip
  want = worlds.trajectories(2)
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [line["uid"] for line in lines] == [one.uid for one in want]
  for line, one in zip(lines, want, strict=True):
    for step, known in zip(line["steps"], one.steps, strict=True):
      assert step["response_ids"] == known.response_ids.tolist()
      assert step["reward"] == known.reward
  folder = trajectories_lib.folder_of(tmp_path / "data", "mine")
  for one, known in zip(
    trajectories_lib.load(folder, "train"), want, strict=True
  ):
    assert journal.same(one, known)


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (("list", "none"), "no such episode: none"),
    (("--state", "lost"), "--state=lost is none of issued"),
    (("label", "late"), "label needs --set"),
    (("label", "late", "--set", "x"), "expected NAME=VALUE, got 'x'"),
    (("exclude",), "exclude needs episodes"),
    (("export",), "export needs --jsonl"),
    (("export", "--tfds", "x/y"), "--tfds needs --tokenizer"),
    (("export", "--jsonl", "nowhere/x"), "--jsonl=nowhere/x"),
  ],
)
def test_a_mistake_is_one_line(run, capsys, argv, message):
  said = " ".join(told(capsys, run, *argv, status=2).err.split())
  assert message in said
  assert "Traceback" not in said


def test_a_folder_without_a_pool_is_told(tmp_path, capsys):
  assert "holds no pool" in told(capsys, tmp_path, status=2).err
