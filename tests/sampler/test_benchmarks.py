"""The benchmarks of two builds run, here with one build twice."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(name, *options):
  """The last line of a benchmark at its smallest."""
  if not (ROOT / ".git").exists():
    pytest.skip("not a clone: there is no earlier build")
  said = subprocess.run(
    [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--smallest",
     "--commit", "HEAD", *options],
    check=True, stdout=subprocess.PIPE, text=True,
  ).stdout  # fmt: skip
  return json.loads(said.splitlines()[-1])


@pytest.mark.slow
def test_cold_starts_of_two_builds_are_compared():
  found = run("cold_start")
  assert found["programs"] == found["programs_before"] <= 8
  assert found["programs_first_use"] == 2
  assert found["same_token"]
  assert found["ratio"] == found["seconds_before"] / found["seconds"]


@pytest.mark.slow
def test_rollouts_of_two_builds_are_compared_in_turn():
  found = run("rollouts", "--rounds", "1")
  (case,) = found["over_before"]
  assert found["same_ids"][case] == 1
  assert found["over_before"][case] > 0


@pytest.mark.slow
def test_updates_with_and_without_a_critic_are_compared():
  found = run("critic")
  (size,) = found["sizes"].values()
  assert size["critic_layers"] == 1
  for key in ("steppo_over_grpo", "steppo_over_grpo_before"):
    assert found[key] == size[key] > 0


@pytest.mark.slow
def test_transforms_of_an_update_are_compared():
  found = run("transforms")
  for name in ("compile_cpu_s", "plain_compile_cpu_s", "vmap_over_loop"):
    assert found[name] > 0
    assert found[f"{name}_before"] > 0
