"""Comparisons: fair by construction, resumable, and nothing is dropped."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_runs
from marks import some

from steppo_jax import __main__ as cli
from steppo_jax.compare import cells as compare
from steppo_jax.compare import matrix
from steppo_jax.compare import report as compare_report
from steppo_jax.reports import intervals
from steppo_jax.training import config

HERE = pathlib.Path(__file__).parents[1]
COMPARE = HERE.parent / "experiments" / "compare"

_BASE = """
import dataclasses, pathlib, sys
sys.path.insert(0, {here!r})
import small_runs
from steppo_jax.training.config import EvalConfig
CONFIG = dataclasses.replace(
  small_runs.small_config(pathlib.Path({folder!r})),
  num_updates=2, tasks_per_update=4, evaluation=EvalConfig(every=1, episodes=4),
)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """An experiment of two tiny updates, some seconds each on a slow machine."""
  folder = tmp_path_factory.mktemp("base")
  small_runs.small_config(folder)
  file = folder / "base.py"
  file.write_text(_BASE.format(here=str(HERE / "support"), folder=str(folder)))
  return str(file)


GRPO = matrix.Method(
  "grpo", (0.2, 0.2),
  ("algorithm.name=grpo", "tasks_per_update=2", "group_size=2"),
)  # fmt: skip


def small(base, **changes):
  """Two methods, one world, two seeds."""
  made = {
    "base": base,
    "methods": (
      matrix.Method("steppo", (0.2, 0.2)),
      GRPO,
    ),
    "worlds": (matrix.World("tiny"),),
    "seeds": (0, 1),
  }
  return matrix.Matrix(**made | changes)


def written(folder, made):
  """A matrix as a file, which is how the command takes it."""
  file = folder / "many.py"
  file.write_text(
    "from steppo_jax.compare.matrix import *\nMATRIX = " + repr(made) + "\n"
  )
  return str(file)


def cells(folder):
  return compare_report.read(folder / "out")


@pytest.mark.slow
def test_a_smoke_matrix_runs_is_reported_and_is_not_run_twice(
  base, tmp_path, capsys
):
  path = written(tmp_path, small(base, seeds=(0,)))
  command = ["compare", path, "--output", str(tmp_path / "out"), "--jobs", "0"]
  assert cli.main(command) == 0
  found = cells(tmp_path)
  assert [(x["method"], x["seed"], x["status"]) for x in found] == [
    ("steppo", 0, "done"), ("grpo", 0, "done"),
  ]  # fmt: skip
  assert all([u for u, _ in x["curve"]] == [0, 1, 2] for x in found)
  # Equal warm start and panel: one success before the first update.
  assert len({x["curve"][0][1] for x in found}) == 1
  page = (tmp_path / "out" / "summary.md").read_text()
  assert "| grpo |" in page
  assert "1 of 1" in page
  assert (tmp_path / "out" / "report.png").stat().st_size > 5_000
  times = [f.stat().st_mtime_ns for f in tmp_path.rglob("metrics.jsonl")]
  assert len(times) == 2
  assert cli.main(command) == 0
  assert times == [
    f.stat().st_mtime_ns for f in tmp_path.rglob("metrics.jsonl")
  ]
  # The report needs the lines alone.
  alone = tmp_path / "alone.jsonl"
  alone.write_text((tmp_path / "out" / "results.jsonl").read_text())
  # Nor do runs that are known from elsewhere take place, by whatever name.
  again = dataclasses.replace(GRPO, name="again")
  other = small(base, methods=(again,), seeds=(0,))
  said = []
  compare.compare(
    written(tmp_path, other), output=tmp_path / "known", jobs=0,
    on_cell=said.append, known=[alone],
  )  # fmt: skip
  assert [(x["method"], x["status"]) for x in said] == [("again", "done")]
  assert said[0]["curve"] == found[1]["curve"]
  assert not list((tmp_path / "known").rglob("metrics.jsonl"))
  assert cli.main(["report", str(alone)]) == 0
  assert alone.with_suffix(".md").read_text() == page
  assert alone.with_suffix(".png").is_file()
  capsys.readouterr()


@pytest.mark.slow
def test_a_crashed_cell_is_a_line_and_the_others_go_on(base, tmp_path):
  # It needs a teacher, which nobody gives it: the run fails when it begins.
  broken = matrix.Method("broken", (0.2, 0.2), ("algorithm.name=serl",))
  made = small(base, methods=(broken, GRPO), seeds=(0,))
  said = []
  folder = compare.compare(
    written(tmp_path, made), output=tmp_path / "out", jobs=1,
    on_cell=said.append,
  )  # fmt: skip
  bad, good = cells(tmp_path)
  assert (bad["method"], bad["status"]) == ("broken", "failed")
  assert bad["error"]
  assert good["status"] == "done"
  assert sorted(x["status"] for x in said) == ["done", "failed"]
  page = (folder / "summary.md").read_text()
  assert "no finished run" in page
  assert bad["error"] in page


@pytest.mark.slow
def test_a_comparison_killed_by_kill_9_goes_on_where_it_was(base, tmp_path):
  path = written(tmp_path, small(base, methods=(GRPO,)))
  out = tmp_path / "out"
  command = [sys.executable, "-m", "steppo_jax", "compare", path,
             "--output", str(out), "--jobs", "0"]  # fmt: skip
  process = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(HERE.parent)},
  )  # fmt: skip
  first, second = (out / "final" / "tiny" / "grpo" / f"seed{i}" for i in (0, 1))
  deadline = time.monotonic() + 300
  while not (second / "config.json").exists():
    assert process.poll() is None, process.stderr.read().decode()
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert (first / "policy.safetensors").exists()
  assert not (second / "policy.safetensors").exists()
  assert [x["status"] for x in cells(tmp_path)] == ["done", "unfinished"]
  before = (first / "metrics.jsonl").stat().st_mtime_ns
  compare.compare(path, output=out, jobs=0, on_cell=lambda _: None)
  assert [x["status"] for x in cells(tmp_path)] == ["done", "done"]
  assert (first / "metrics.jsonl").stat().st_mtime_ns == before


def line(method, seed, curve, **more):
  return {
    "matrix": "m", "kind": "final", "world": "w", "method": method,
    "seed": seed, "settings": {"clip_scale": 1.0}, "status": "done",
    "curve": curve, "success": curve[-1][1], "updates": curve[-1][0],
    "minutes": 3.0, "commit": "c", "hardware": "h", "date": "2026-11-24T00",
  } | more  # fmt: skip


@pytest.mark.slow
def test_the_search_gives_each_method_its_best_setting(base, tmp_path):
  search = matrix.Search((1e-4, 1e-3), (0.5, 1.0), (7,), ("num_updates=1",))
  made = small(base, search=search)
  planned = list(matrix.search_cells(made))
  assert len(planned) == 2 * 2 * 2
  assert all("num_updates=1" in cell.assignments for cell in planned)
  # Finished runs as the trainer leaves them: steppo is best at 1e-3 and 0.5,
  # grpo's best setting crashed, of the rest 1e-4 and 1 wins.
  success = {
    ("steppo", 1e-3, 0.5): 0.9, ("grpo", 1e-3, 0.5): 0.8,
    ("grpo", 1e-4, 1.0): 0.7,
  }  # fmt: skip
  for cell in planned:
    values = dict(cell.settings)
    key = cell.method, values["learning_rate"], values["clip_scale"]
    path = tmp_path / cell.folder
    path.mkdir(parents=True)
    value = {"update": 1, "eval/success": success.get(key, 0.1)}
    (path / "metrics.jsonl").write_text(json.dumps(value) + "\n")
    (path / "run.json").write_text(
      json.dumps({"commit": "c", "date": "d", "hardware": "h"})
    )
    (path / "policy.safetensors").write_bytes(b"")
    if key == ("grpo", 1e-3, 0.5):
      path.with_name(f"{path.name}.error").write_text("out of memory")
  chosen = compare.choose(made, tmp_path)
  assert dict(chosen["tiny", "steppo"])["learning_rate"] == 1e-3
  assert dict(chosen["tiny", "grpo"])["learning_rate"] == 1e-4
  cell = next(matrix.final_cells(made, chosen))
  assert cell.method == "steppo"
  assert "algorithm.clip_low=0.1" in cell.assignments
  assert "learner.learning_rate=0.001" in cell.assignments
  assert "num_updates=1" not in cell.assignments
  failed = compare.result(made, tmp_path, planned[5])
  assert (failed["status"], failed["error"]) == ("failed", "out of memory")


@pytest.mark.parametrize(
  ("assignments", "says"),
  [
    (("num_updates=9",), "num_updates=9"),
    (("tasks_per_update=5",), "episodes=5"),
    (("evaluation.episodes=9",), "evaluation="),
    (("rollout.max_steps=3",), "rollout="),
    (("algorithm.clip_low=0.2", "algorithm.name=none"), "unknown algorithm"),
  ],
)
def test_an_unfair_matrix_is_refused(base, assignments, says):
  other = matrix.Method("other", (0.2, 0.2), assignments)
  made = small(base, methods=(matrix.Method("steppo", (0.2, 0.2)), other))
  with pytest.raises(ValueError, match=says):
    matrix.check(made)


def test_a_clip_of_another_ratio_is_refused(base):
  # 3e-4 is StepPO's in the paper's scripts, and was given to token ratios.
  ppo = matrix.Method("ppo", (3e-4, 3e-4), ("algorithm.name=ppo",))
  made = small(base, methods=(ppo,))
  with pytest.raises(ValueError, match="does not fit a token ratio"):
    matrix.check(made)


def test_seeds_of_the_search_are_not_reported(base):
  search = matrix.Search((1e-3,), (1.0,), (1,))
  with pytest.raises(ValueError, match=r"search\.seeds"):
    matrix.check(small(base, search=search))


def test_a_cell_of_a_changed_matrix_is_not_taken_for_this_one(base, tmp_path):
  made = small(base, methods=(GRPO,), seeds=(0,))
  other = small(
    base, methods=(GRPO,), seeds=(0,), assignments=("num_updates=1",)
  )
  cell = next(matrix.final_cells(other, {("tiny", "grpo"): matrix.AS_WRITTEN}))
  compare._open(other, cell, tmp_path / cell.folder)
  (tmp_path / cell.folder / "policy.safetensors").write_bytes(b"")
  cell = next(matrix.final_cells(made, {("tiny", "grpo"): matrix.AS_WRITTEN}))
  compare.run_cell(made, tmp_path, cell, in_process=True)
  found = compare.result(made, tmp_path, cell)
  assert found["status"] == "failed"
  assert "num_updates=1 there, 2 now" in found["error"]


def test_area_difference_improvement_and_power_by_hand():
  # (0.2 + 0.4) / 2 over 10 updates and (0.4 + 0.4) / 2 over 30: 15 / 40.
  curve = [[0, 0.2], [10, 0.4], [40, 0.4]]
  assert compare_report.area(curve) == pytest.approx(0.375)
  assert compare_report.area([[0, 0.3]]) == pytest.approx(0.3)
  # Pairs: 1 > 0, 1 = 1, 2 > 0, 2 > 1: 3.5 of 4.
  found = intervals.improvement([1.0, 2.0], [0.0, 1.0], 0)
  assert found[0] == pytest.approx(3.5 / 4)
  assert 0.5 <= found[1] <= found[0] <= found[2] == 1.0
  found = intervals.difference([1.0, 3.0], [0.0, 0.0], 0)
  assert found == (2.0, 1.0, 3.0)
  # Pooled variance (2 + 2) / 2 = 2, two runs each: 2.8 √(2 · 2 / 2).
  least = intervals.detectable([[0.0, 2.0], [5.0, 7.0]])
  assert least == pytest.approx(2.8 * np.sqrt(2.0))
  assert intervals.detectable([[1.0]]) is None


def test_the_tables_name_runs_that_failed_or_never_began():
  lines = [
    line("a", 0, [[0, 0.1], [2, 0.5]]),
    line("a", 1, [[0, 0.1], [2, 0.7]]),
    line("b", 0, [[0, 0.1], [2, 0.2]]),
    line("b", 1, [[0, 0.1]], status="failed", error="status 1: no memory"),
    line("c", 0, [[0, 0.1]], status="unfinished"),
  ]
  page = compare_report.tables(lines)
  assert "| a | 0.600 [0.500, 0.700] |" in page
  assert "| b | 0.200 [0.200, 0.200] | -0.400 [-0.500, -0.300] |" in page
  assert "| c | no finished run |" in page
  assert "1 of 2" in page
  assert "- final w b seed 1, after 0 updates: failed, status 1: no memory" in (
    page
  )
  assert "- final w c seed 0, after 0 updates: unfinished" in page
  assert "0.25 hours of runs on h; commits c; 2026-11-24." in page


@pytest.mark.parametrize(
  "path",
  some(
    COMPARE / "critic.py", COMPARE / "household.py",
    slow=sorted(COMPARE.glob("*.py")),
  ),
  ids=lambda path: path.stem,
)  # fmt: skip
def test_every_committed_matrix_is_fair(path):
  made = matrix.load(str(path))
  assert len(made.seeds) >= (5 if path.stem == "household" else 3)
  assert isinstance(config.load(made.base), config.RunConfig)


@pytest.mark.parametrize("name", ["household", "horizon", "updates"])
def test_options_that_are_new_leave_kept_results_to_be_found(name):
  kept = COMPARE.parents[1] / "docs" / "compare" / f"{name}.jsonl"
  known = {json.loads(x)["options"] for x in kept.read_text().splitlines()}
  made = matrix.load(str(COMPARE / f"{name}.py"))
  cells = [*matrix.search_cells(made)][:4] or [
    *matrix.final_cells(
      made,
      {
        (world.name, method.name): matrix.AS_WRITTEN
        for world in made.worlds
        for method in made.methods
      },
    )
  ][:4]
  assert {matrix.digest(made, cell) for cell in cells} <= known


def test_equal_options_are_the_same_run_wherever_the_weights_lie(
  base, tmp_path
):
  def name(path):
    method = matrix.Method("steppo", (0.2, 0.2), (f"weights={path}",))
    made = small(base, methods=(method,))
    chosen = {("tiny", "steppo"): (("clip_scale", 1.0),)}
    cell = next(matrix.final_cells(made, chosen))
    return matrix.digest(made, cell)

  paths = [tmp_path / x for x in ("here.safetensors", "there.safetensors")]
  for path in paths:
    path.write_bytes(b"weights")
  assert name(paths[0]) == name(paths[1])
  other = tmp_path / "other.safetensors"
  other.write_bytes(b"other weights")
  assert name(other) != name(paths[0])


@pytest.mark.slow
def test_options_are_read_by_many_threads_at_once(base):
  often = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  try:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      read = lambda n: matrix.parse(str(base), (f"num_updates={n}",))
      runs = list(pool.map(read, range(1, 49)))
  finally:
    sys.setswitchinterval(often)
  assert [run.num_updates for run in runs] == list(range(1, 49))
