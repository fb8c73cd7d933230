"""The command `pool`, on a pool of episodes that were really played."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
import worlds

from steppo_jax import __main__ as cli
from steppo_jax import types
from steppo_jax.datasets import trajectories as trajectories_lib
from steppo_jax.processes import kill_points
from steppo_jax.rollout import journal, pool_entries
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
    "--atif", tmp_path / "data" / "documents",
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
  for n, known in enumerate(want):
    path = tmp_path / "data" / "documents" / "train" / f"0000{n}.json"
    document = json.loads(path.read_text())
    assert document["session_id"] == known.uid
    assert len(document["steps"]) == len(known.steps) + 1


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
    (("export", "--atif", "x/y"), "--atif needs --tokenizer"),
    (("export", "--jsonl", "nowhere/x"), "--jsonl=nowhere/x"),
  ],
)
def test_a_mistake_is_one_line(run, capsys, argv, message):
  said = " ".join(told(capsys, run, *argv, status=2).err.split())
  assert message in said
  assert "Traceback" not in said


def test_a_folder_without_a_pool_is_told(tmp_path, capsys):
  assert "holds no pool" in told(capsys, tmp_path, status=2).err


def test_what_has_ended_is_consumed_once_it_is_in_a_file(run, tmp_path, capsys):
  """Groups whole; one with an excluded member, and one of validation, too."""
  served = tmp_path / "served.sqlite"
  (run / run_folder.POOL_NAME).rename(served)
  one = worlds.trajectories(2)[0]
  for channel in ("train", "validation"):
    uids = [f"{channel}-{j}" for j in range(2)]
    with pool_lib.Pool(served) as pool:
      pool.issue(
        channel, one.task, [(uid, (1,), 0) for uid in uids], channel=channel
      )
      pool.start("agent", 60, uid=uids[0])
      pool.finish(dataclasses.replace(one, uid=uids[0]), "agent")
  told(capsys, served, "label", "e0-0", "--set", "verdict=exclude")

  def taken(name, *more):
    file = tmp_path / name
    said = told(
      capsys, served, "export", "--consume", "--jsonl", file, *more
    ).err  # fmt: skip
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines], said

  # Two episodes wait for the others of their groups.
  found, said = taken("1.jsonl")
  assert [(x["uid"], x["state"]) for x in found] == [("e1-0", "consumed")]
  assert "1 episodes exported" in said
  assert "1 excluded" in said
  told(capsys, served, "exclude", "--state", "issued")
  (found, _) = taken("2.jsonl", "--channel", "validation")
  assert [x["uid"] for x in found] == ["validation-0"]
  assert [x["uid"] for x in taken("3.jsonl")[0]] == ["train-0"]
  assert "no group has ended" in taken("4.jsonl")[1]
  assert not (tmp_path / "4.jsonl").exists()
  with pool_lib.Pool(served) as pool:
    counts = pool_entries.counts(pool)
    assert pool_entries.trajectories(pool, ["e1-0", "train-0"]) == []
  assert (counts["consumed"], counts["failed"]) == (4, 3)


def test_an_export_that_was_killed_is_gone_on_with_and_no_other(
  run, tmp_path, capsys
):
  served, file = tmp_path / "served.sqlite", tmp_path / "out.jsonl"
  (run / run_folder.POOL_NAME).rename(served)
  export = ["export", "--consume", "--jsonl"]
  killed = subprocess.run(
    [sys.executable, "-m", "steppo_jax", "pool", str(served), *export,
     str(file)],
    env=os.environ | {kill_points.VARIABLE: "pool: leased=1"}, check=False,
  )  # fmt: skip
  assert killed.returncode == -signal.SIGKILL
  file.write_text("as if it had been killed after it was written")
  other = tmp_path / "other.jsonl"
  assert "no group has ended" in told(capsys, served, *export, other).err
  told(capsys, served, *export, file)
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [line["uid"] for line in lines] == ["e0-0", "e1-0"]
  said = told(capsys, served, *export, file, status=2).err
  assert "out.jsonl exists: choose another file" in " ".join(said.split())


def test_an_export_that_was_killed_at_its_end_leaves_no_records(
  run, tmp_path, capsys
):
  served, file = tmp_path / "served.sqlite", tmp_path / "out.jsonl"
  (run / run_folder.POOL_NAME).rename(served)
  export = ["export", "--consume", "--jsonl", str(file)]
  killed = subprocess.run(
    [sys.executable, "-m", "steppo_jax", "pool", str(served), *export],
    env=os.environ | {kill_points.VARIABLE: "pool: consumed=1"}, check=False,
  )  # fmt: skip
  assert killed.returncode == -signal.SIGKILL
  whole = file.read_text()
  assert len(whole.splitlines()) == 2
  held = lambda pool: pool_entries.trajectories(pool, ["e0-0", "e1-0"])
  with pool_lib.Pool(served) as pool:
    assert len(held(pool)) == 2
  told(capsys, served, *export, status=2)
  assert file.read_text() == whole
  with pool_lib.Pool(served) as pool:
    assert held(pool) == []


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (("list", "--consume"), "--consume goes with export"),
    (("export", "e0-0", "--jsonl", "x"), "takes whole groups"),
    (("export", "--state", "ready", "--jsonl", "x"), "takes whole groups"),
    (("export", "--jsonl", "-"), "needs --jsonl FILE"),
    (("export", "--tfds", "x/y", "--jsonl", "x"), "no other output"),
    (("export", "--jsonl", "nowhere/x"), "--jsonl=nowhere/x: No such file"),
  ],
)
def test_what_cannot_be_consumed_is_refused(run, capsys, argv, message):
  said = told(capsys, run, *argv, "--consume", status=2).err
  assert message in " ".join(said.split())
  (run / run_folder.FACTS_NAME).write_text("{}")
  said = told(capsys, run, "export", "--consume", "--jsonl", "x", status=2).err
  assert "belongs to a run, which trains on it" in " ".join(said.split())
