"""Numbers of a panel by hand, with intervals that cover."""

import itertools
import json
import math
import os

import numpy as np
import pytest

from steppo_jax import types
from steppo_jax.reports import evaluation, intervals, panel


def _episode(task, length, success, scores=(), error=None, golden=None):
  step = types.Step(
    prompt_ids=np.array([1], np.int32),
    response_ids=np.array([2], np.int32),
    response_mask=np.ones(1, bool),
    behaviour_logp=np.zeros(1, np.float32),
    reward=0.5,
    trajectory_uid="",
    step_index=0,
    group_uid=task,
    policy_version=0,
    metadata={"invalid": True},
  )
  return types.Trajectory(
    f"{task}-{length}", types.Task(task, "e", task[0], {}, golden),
    (step,) * length, None, success, error, scores=dict(scores),
  )  # fmt: skip


def test_pass_at_k_by_hand():
  # Of 4 episodes 1 solved it: 2 of them hold it in 3 of 6 choices.
  assert intervals.pass_at_k(1, 4, 2) == pytest.approx(0.5)
  # 2 of 5, 3 at a time: all but the one choice of the three failures.
  assert intervals.pass_at_k(2, 5, 3) == pytest.approx(0.9)
  assert [intervals.pass_at_k(c, 3, 1) for c in range(4)] == pytest.approx(
    [0, 1 / 3, 2 / 3, 1]
  )
  assert intervals.pass_at_k(0, 3, 3) == 0.0
  for numbers in ((1, 2, 3), (3, 2, 1), (-1, 2, 1), (1, 2, 0)):
    with pytest.raises(ValueError, match="is not defined"):
      intervals.pass_at_k(*numbers)


def test_pass_at_k_is_unbiased():
  random = np.random.default_rng(0)
  solved = random.uniform(size=(20_000, 6)) < 0.3
  found = [intervals.pass_at_k(int(row.sum()), 6, 4) for row in solved]
  assert np.mean(found) == pytest.approx(1 - 0.7**4, abs=0.01)


def test_a_table_by_hand():
  episodes = [
    _episode("a1", 2, True, {"f1": 1.0}, golden=2),
    _episode("a1", 4, False, {"f1": 0.5}, golden=2),
    _episode("b1", 3, True, {"f1": 1.0}, golden=1),
    _episode("b1", 1, False, error="EnvDied: x", golden=1),
  ]
  found = panel.table(episodes, (1, 2))
  assert list(found) == ["all", "a", "b"]
  mean = {name: number.mean for name, number in found["all"].items()}
  assert mean == pytest.approx(
    {
      "success": 0.5,
      "pass@1": 0.5,
      "pass@2": 1.0,
      "f1": (0.75 + 0.5) / 2,  # The broken episode has none: 0.
      "reward": (1.5 + 1.5) / 2,  # Broken ones have no reward.
      "steps": 3.0,
      "invalid_share": 1.0,
      "length_over_golden": (1.0 + 3.0) / 2,
      "error_share": 0.25,
    }
  )
  assert found["a"]["f1"].mean == 0.75
  assert found["b"]["error_share"].mean == 0.5
  assert found["a"]["success"].tasks == 1
  # One family needs no table of its own.
  assert list(panel.table(episodes[:2])) == ["all"]
  with pytest.raises(ValueError, match="no episodes"):
    panel.table([])


def test_numbers_that_no_task_has_are_left_out():
  found = panel.table([_episode("a1", 3, False)])["all"]
  assert "length_over_golden" not in found
  broken = panel.table([_episode("a1", 0, False, error="E: x")])["all"]
  assert set(broken) == {"success", "pass@1", "error_share"}
  assert broken["success"].mean == 0.0


def test_all_solved_is_not_certain():
  found = panel.table([_episode(f"a{n}", 1, True) for n in range(20)])
  number = found["all"]["success"]
  # Wilson: 1 / (1 + 3.8415 / 20).
  assert (number.mean, number.high) == (1.0, 1.0)
  assert number.low == pytest.approx(0.8389, abs=1e-4)


def test_intervals_are_over_tasks_and_not_over_episodes():
  random = np.random.default_rng(1)
  solved = random.uniform(size=60) < 0.5
  # Every task is always or never solved: 16 episodes know no more than one.
  once = [_episode(f"a{n}", 1, bool(s)) for n, s in enumerate(solved)]
  often = [e for e in once for _ in range(16)]
  one, other = panel.table(once)["all"], panel.table(often)["all"]
  assert one["success"] == other["success"]
  assert one["success"].high - one["success"].low > 0.2


def test_intervals_cover_about_95_percent():
  random = np.random.default_rng(2)
  values = random.exponential(size=(80, 150))
  low, high = intervals.intervals(values, seed=0)
  covered = np.mean((low <= 1.0) & (high >= 1.0))
  assert 0.86 < covered < 0.99
  normal = 1.96 * values.std(axis=0) / math.sqrt(80)
  np.testing.assert_allclose((high - low) / 2, normal, rtol=0.15)


def test_intervals_pass_over_what_a_task_lacks():
  values = np.array([[1.0, math.nan], [2.0, 3.0], [3.0, math.nan]])
  low, high = intervals.intervals(values, seed=0)
  assert (low[1], high[1]) == (3.0, 3.0)
  assert low[0] < 2.0 < high[0]
  nothing = intervals.intervals(np.full((2, 1), math.nan), seed=0)
  assert np.isnan(nothing).all()
  with pytest.raises(ValueError, match="at least one task"):
    intervals.intervals(np.zeros((0, 1)), seed=0)


@pytest.mark.slow
def test_many_tasks_are_drawn_in_parts():
  values = np.random.default_rng(0).normal(size=(7_405, 1))
  (low,), (high,) = intervals.intervals(values, seed=0)
  half = 1.96 * values.std() / math.sqrt(7_405)
  assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_lengths_by_hand():
  episodes = [
    _episode("a1", 4, True, golden=4),
    _episode("a2", 8, True, golden=4),
    _episode("a3", 20, False, golden=9),
    _episode("a4", 1, False),
  ]
  short, long = panel.by_length(episodes)
  assert (short.shortest, short.longest, short.tasks) == (4, 4, 2)
  assert (short.success.mean, short.steps.mean) == (1.0, 6.0)
  assert short.steps_won.mean == 6.0
  assert (long.shortest, long.tasks, long.success.mean) == (9, 1, 0.0)
  assert long.steps.mean == 20.0
  assert long.steps_won is None
  assert panel.by_length(episodes[3:]) == []


def test_bins_join_neighbours_and_lose_no_task():
  episodes = [_episode(f"a{n}", 1, True, golden=1 + n % 23) for n in range(230)]
  bins = panel.by_length(episodes, most_bins=8)
  assert len(bins) == 8
  assert sum(b.tasks for b in bins) == 230
  assert bins[0].shortest == 1
  assert bins[-1].longest == 23
  ends = [(b.shortest, b.longest) for b in bins]
  assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
  assert max(b.tasks for b in bins) <= 40
  # One length that nearly all tasks have is one bin.
  most = [_episode(f"b{n}", 1, True, golden=50) for n in range(900)]
  bins = panel.by_length(episodes + most, most_bins=4)
  assert sum(b.tasks for b in bins) == 1130


def test_lengths_are_drawn(tmp_path):
  bins = panel.by_length(
    [_episode(f"a{n}", 3, n % 2 > 0, golden=n % 5 + 1) for n in range(40)]
  )
  path = tmp_path / "x.png"
  panel.draw_lengths(path, {"valid_seen": bins, "valid_unseen": bins}, 20)
  assert os.path.getsize(path) > 10_000


def test_limits_that_cannot_be_compared_are_told():
  (note,) = evaluation.notes("alfworld", 50)
  assert note.startswith("Episodes end after 50 steps.")
  assert "success at 20 and at 50 steps is not comparable" in note
  assert evaluation.notes("webshop", 15) == ()


def test_a_summary_is_json():
  episodes = [_episode("a1", 2, True, {"f1": 1.0}, golden=2)]
  found = evaluation.Evaluation(
    {"env": "e"}, ("note",), {"s": episodes},
    {"s": panel.table(episodes)}, {"s": panel.by_length(episodes)},
  )  # fmt: skip
  summary = json.loads(json.dumps(found.summary(), allow_nan=False))
  assert summary["tables"]["s"]["all"]["f1"]["mean"] == 1.0
  assert summary["lengths"]["s"][0]["steps"]["mean"] == 2.0
  assert summary["notes"] == ["note"]
