"""A run that was killed anywhere ends with the bits of one that was not."""

import json
import os
import pathlib
import random
import signal
import time

import crashing
import numpy as np
import pytest

from steppo_jax.processes import kill_points, signals

# Passed once in a session.
ONCE = {
  "train: folder held", "train: built", "train: warmed up",
  "train: updates done", "train: policy written",
}  # fmt: skip
# Other threads than the main one come by.
SEALING = {p for p in kill_points.POINTS if p.startswith("manifest")} | {
  "checkpoint: files written", "checkpoint: sealed",
  "checkpoint: old one removed",
}  # fmt: skip
CASES = [
  f"{name}={count}"
  for name in kill_points.POINTS
  for count in ((1,) if name in ONCE else (1, 2))
]
# One after the other: after an update, within a rollout, a checkpoint, a line.
FEW = (
  "update: learned=2", "journal: half a frame=7",
  "checkpoint: files written=1", "metrics: before a line=1",
)  # fmt: skip
INSTANTS = int(os.environ.get("STEPPO_CRASHES", "30"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The run that nothing ended: its folder, what came of it, its seconds."""
  folder = tmp_path_factory.mktemp("whole")
  config = crashing.options(folder, "run")
  seconds = crashing.timed(config)
  return folder, crashing.result(config), seconds


def check(config, expected):
  """Goes on to the end and compares."""
  crashing.check_interval(config)
  assert crashing.session(config) == 0
  found = crashing.result(config)
  for old, new in zip(expected["metrics"], found["metrics"], strict=True):
    assert list(old) == list(new)
    for name, value in old.items():
      np.testing.assert_array_equal(new[name], value, err_msg=name)
  for name in ("policy", "state", "trajectories"):
    assert found[name] == expected[name], name


@pytest.mark.crash
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_place_changes_nothing(whole, tmp_path, case):
  folder, expected, _ = whole
  config = crashing.options(folder, str(tmp_path / "killed"))
  assert crashing.session(config, case) == -signal.SIGKILL
  check(config, expected)


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(INSTANTS))
def test_a_kill_at_any_instant_changes_nothing(whole, tmp_path, seed):
  folder, expected, seconds = whole
  config = crashing.options(folder, str(tmp_path / "killed"))
  draw = random.Random(seed)
  # Twice: a restart is killed as well.
  for _ in range(2):
    process = crashing.start(config)
    time.sleep(draw.uniform(0, seconds))
    process.kill()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
  check(config, expected)


@pytest.mark.crash
@pytest.mark.parametrize(
  "case", [c for c in CASES if c.rpartition("=")[0] not in SEALING]
)
def test_a_sigterm_at_any_place_ends_with_42(whole, tmp_path, case):
  folder, expected, _ = whole
  config = crashing.options(folder, str(tmp_path / "stopped"))
  code = crashing.session(config, f"{case}:SIGTERM")
  # One that comes when all is done changes nothing any more.
  late = case.startswith(("train: updates done", "train: policy"))
  assert code == signals.RESTARTABLE or (late and code == 0)
  check(config, expected)


@pytest.mark.crash
@pytest.mark.parametrize("places", [FEW[:1], FEW])
def test_a_run_that_dies_once_or_often_ends_as_well(whole, tmp_path, places):
  folder, expected, _ = whole
  config = crashing.options(folder, str(tmp_path / "killed"))
  for case in places:
    assert crashing.session(config, case) == -signal.SIGKILL
  check(config, expected)
  lines = (pathlib.Path(config.run_dir) / "events.jsonl").read_text()
  starts = [line for line in lines.splitlines() if '"start"' in line]
  assert len(starts) == len(places) + 1
  assert all("at" in json.loads(line) for line in starts)


def test_places_that_do_not_exist_are_refused():
  for text in ("nowhere=1", "train: built", "train: built=0",
               "train: built=1:SIGNO"):  # fmt: skip
    with pytest.raises(ValueError, match="STEPPO_KILL_AT"):
      kill_points.arm(text)
