"""Runs that are killed, stopped or damaged go on bit for bit."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import small_runs
from marks import some

from steppo_jax.storage import checkpoint, metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  options = small_runs.small_config(
    tmp_path_factory.mktemp("whole"), keep_checkpoints=3
  )
  return options, small_runs.run(options)


def test_a_run_killed_between_updates_ends_with_the_same_bits(
  finished, tmp_path
):
  options, folder = finished
  resumed = dataclasses.replace(options, run_dir=str(tmp_path / "again"))
  small_runs.run(resumed, stop_after=2)
  again = small_runs.run(resumed)
  assert small_runs.bits(folder) == small_runs.bits(again)
  lines = metrics.read_jsonl(again / "metrics.jsonl")
  assert [line["update"] for line in lines] == [0, 1, 2, 3]
  whole = metrics.read_jsonl(folder / "metrics.jsonl")
  for name in ("rollout/reward", "policy/grad_norm", "critic/grad_norm"):
    assert lines[3][name] == whole[3][name]


def start(options, tmp_path, target):
  """The run of `options` as a process of its own, and its command."""
  experiment = tmp_path / "experiment.py"
  experiment.write_text(
    "import sys, pathlib\n"
    f"sys.path.insert(0, {str(pathlib.Path(small_runs.__file__).parent)!r})\n"
    "import small_runs\n"
    "CONFIG = small_runs.small_config(\n"
    f"  pathlib.Path({str(pathlib.Path(options.weights).parent)!r}),\n"
    "  keep_checkpoints=3)\n"
  )
  command = [
    sys.executable, "-m", "steppo_jax", "train", str(experiment),
    f"run_dir={target}",
  ]  # fmt: skip
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )
  return process, command


def wait_until(process, happened):
  deadline = time.monotonic() + 300
  while not happened():
    assert process.poll() is None, process.stdout.read().decode()
    assert time.monotonic() < deadline
    time.sleep(0.02)


def finish(command):
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return done


@pytest.mark.slow
@pytest.mark.parametrize("number", some(signal.SIGTERM, slow=[signal.SIGINT]))
def test_a_signal_ends_with_42_and_the_same_command_goes_on(
  finished, tmp_path, number
):
  options, folder = finished
  target = tmp_path / "stopped"
  process, command = start(options, tmp_path, target)
  lines = lambda: (target / "metrics.jsonl").read_text().count("\n")
  wait_until(
    process, lambda: (target / "metrics.jsonl").exists() and lines() > 1
  )
  process.send_signal(number)
  said = process.communicate(timeout=60)[0].decode()
  assert process.returncode == 42, said
  assert f"stopped by {number.name}; the same command goes on" in said
  # What was written of updates is in a checkpoint.
  found = metrics.read_jsonl(target / "metrics.jsonl")
  with checkpoint.Checkpoints(target / "checkpoints", 3) as store:
    assert store.latest() == found[-1]["update"] >= 1
  done = finish(command)
  assert small_runs.bits(folder) == small_runs.bits(target)
  assert (target / "report.png").stat().st_size > 10_000
  assert "unseen" in done.stdout or "success" in done.stdout


@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused(finished, tmp_path):
  options, _ = finished
  target = tmp_path / "shared"
  process, command = start(options, tmp_path, target)
  wait_until(process, lambda: (target / "lease.json").exists())
  time.sleep(0.2)
  second = subprocess.run(command, capture_output=True, text=True, timeout=60)
  process.kill()
  process.communicate()
  assert second.returncode == 1
  assert f"process {process.pid} on" in second.stderr


@pytest.mark.slow
def test_kill_9_and_the_same_command_end_with_the_same_bits(finished, tmp_path):
  options, folder = finished
  target = tmp_path / "killed"
  process, command = start(options, tmp_path, target)
  wait_until(process, (target / "checkpoints" / "1").exists)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (target / "policy.safetensors").exists()
  finish(command)
  assert small_runs.bits(folder) == small_runs.bits(target)


@pytest.mark.slow
def test_a_truncated_checkpoint_falls_back_to_the_one_before(
  finished, tmp_path
):
  options, folder = finished
  options = dataclasses.replace(options, run_dir=str(tmp_path / "cut"))
  small_runs.run(options, stop_after=3)
  newest = tmp_path / "cut" / "checkpoints" / "2"
  store = checkpoint.Checkpoints(tmp_path / "cut" / "checkpoints", 3)
  assert store.latest() in (2, 3)
  store.close()
  for name in ("2", "3"):
    newest = tmp_path / "cut" / "checkpoints" / name
    for file in newest.rglob("*"):
      if file.is_file():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  again = small_runs.run(options)
  assert small_runs.bits(folder) == small_runs.bits(again)
