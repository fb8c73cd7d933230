"""Intervals by hand, and a report from real run folders."""

import json

import numpy as np
import pytest

from steppo_jax.reports import intervals, report
from steppo_jax.storage import metrics


def make_run(path, successes, *, minutes=2.0, seed=0, train=True):
  """A run evaluated every 10 updates on 200 episodes."""
  with metrics.MetricsWriter(path) as writer:
    for index, success in enumerate(successes):
      update = 10 * index
      if train and index:
        for step in range(update - 9, update + 1):
          writer.write(
            step,
            {
              "minutes": step / 10 * minutes,
              "rollout/success": success,
              "rollout/invalid_share": 0.25,
              "rollout/episodes_per_s": 40.0,
              "tokens_per_s": 5000.0,
              "policy/entropy": float("nan") if step == 3 else 1 / step,
              "policy/approx_kl": 0.01,
              "policy/clip_fraction": 0.1,
              "critic/explained_variance": 0.5,
            },
          )
      writer.write(
        update,
        {
          "minutes": index * minutes,
          "eval/success": success,
          "eval/episodes": 200,
          "eval/success/pick_two": success / 2,
          "eval/length_over_golden": 2.0 - success,
        },
      )
  facts = {"command": "train x", "hardware": "2 cores", "seed": seed}
  (path / "run.json").write_text(json.dumps(facts))
  return path


def test_wilson_by_hand():
  # n = 10, p = 0.5, z² = 3.8415: centre 0.5, half
  # 1.95996 sqrt(0.025 + 3.8415 / 400) / 1.38415 = 0.26340.
  low, high = intervals.wilson_interval(5, 10)
  assert low == pytest.approx(0.23659, abs=1e-5)
  assert high == pytest.approx(0.76341, abs=1e-5)


def test_wilson_at_the_ends():
  # No success of n: the upper end is z² / (n + z²) = 3.8415 / 13.8415.
  assert intervals.wilson_interval(0, 10) == pytest.approx((0.0, 0.277533))
  assert intervals.wilson_interval(10, 10) == pytest.approx((0.722467, 1.0))
  assert intervals.wilson_interval(0, 0) == (0.0, 1.0)
  with pytest.raises(ValueError, match="11 successes of 10"):
    intervals.wilson_interval(11, 10)


def test_wilson_covers_about_95_percent():
  random = np.random.default_rng(0)
  draws = random.binomial(100, 0.3, size=2000)
  covered = [
    low <= 0.3 <= high
    for low, high in (intervals.wilson_interval(int(k), 100) for k in draws)
  ]
  assert 0.92 < np.mean(covered) < 0.98


def test_bootstrap_is_of_the_mean_and_repeats():
  values = [0.5, 0.6, 0.7]
  low, high = intervals.bootstrap_interval(values, seed=0)
  # All three draws are the lowest in 1 of 27 cases, more than 2.5 %.
  assert low == pytest.approx(0.5)
  assert high == pytest.approx(0.7)
  assert intervals.bootstrap_interval(values, seed=0) == (low, high)
  assert intervals.bootstrap_interval([0.4], seed=1) == pytest.approx(
    (0.4, 0.4)
  )
  # 400 values of standard deviation 1: the mean is known to 1.96 / 20.
  many = np.random.default_rng(0).standard_normal(400)
  low, high = intervals.bootstrap_interval(many, seed=0)
  assert high - low == pytest.approx(2 * 1.96 / 20 * many.std(), rel=0.05)
  with pytest.raises(ValueError, match="at least one"):
    intervals.bootstrap_interval([], seed=0)


def test_the_rise_of_one_run_has_newcombes_interval(tmp_path):
  run = report.read_run(make_run(tmp_path / "a", [0.3, 0.7]))
  l1, u1 = intervals.wilson_interval(60, 200)
  l2, u2 = intervals.wilson_interval(140, 200)
  change, low, high = report.rise([run])
  assert change == pytest.approx(0.4)
  assert low == pytest.approx(0.4 - ((0.7 - l2) ** 2 + (u1 - 0.3) ** 2) ** 0.5)
  assert high == pytest.approx(0.4 + ((u2 - 0.7) ** 2 + (0.3 - l1) ** 2) ** 0.5)


def test_the_rise_of_several_runs_is_bootstrapped_over_runs(tmp_path):
  runs = [
    report.read_run(make_run(tmp_path / str(i), [0.3, 0.3 + x]))
    for i, x in enumerate((0.2, 0.3, 0.4))
  ]
  assert report.rise(runs) == pytest.approx((0.3, 0.2, 0.4))


def test_a_report_says_what_ran_and_what_it_reached(tmp_path):
  run = make_run(tmp_path / "steppo", [0.30, 0.5, 0.7])
  control = make_run(tmp_path / "sft", [0.30, 0.35], minutes=4.0, train=False)
  summary = report.report(run, control=control)
  text = summary.read_text()
  assert "command: train x; hardware: 2 cores; seed: 0" in text
  # Wilson, 60 and 140 of 200.
  assert "| success | 0.300 [0.241, 0.367] | 0.700 [0.633, 0.759] |" in text
  assert "| success/pick_two | 0.150 | 0.350 |" in text
  assert "| length_over_golden | 1.700 | 1.300 |" in text
  assert "Rise: +0.400 [" in text
  assert "in 4.0 minutes and 20 updates" in text
  assert "40 episodes/s, 5e+03 tokens/s" in text
  assert "Control, more supervised training: 0.350" in text
  picture = (run / "report.png").read_bytes()
  assert picture.startswith(b"\x89PNG")
  assert len(picture) > 20_000


def test_several_seeds_are_averaged(tmp_path):
  runs = [
    make_run(tmp_path / str(seed), [0.3, success], seed=seed)
    for seed, success in enumerate((0.5, 0.6, 0.7))
  ]
  text = report.report(*runs).read_text()
  assert "bootstrap over 3 runs" in text
  assert "| 0.600 [0.500, 0.700] |" in text
  assert "seed: 2" in text


def test_a_run_without_training_lines_has_a_report(tmp_path):
  run = make_run(tmp_path / "only", [0.3], train=False)
  assert "not measured episodes/s" in report.report(run).read_text()


def test_what_cannot_be_reported_is_named(tmp_path):
  with pytest.raises(ValueError, match="no metrics at"):
    report.report(tmp_path)
  with metrics.MetricsWriter(tmp_path / "young") as writer:
    writer.write(1, {"rollout/success": 0.1})
  with pytest.raises(ValueError, match="no evaluation yet"):
    report.report(tmp_path / "young")
  with metrics.MetricsWriter(tmp_path / "odd") as writer:
    writer.write(5, {"eval/success": 0.1, "minutes": 1.0})
  with pytest.raises(ValueError, match=r"update 5 in .* has no eval/episodes"):
    report.report(tmp_path / "odd")
  run = make_run(tmp_path / "a", [0.3])
  with metrics.MetricsWriter(tmp_path / "b") as writer:
    writer.write(7, {"eval/success": 0.1, "eval/episodes": 10, "minutes": 1.0})
  with pytest.raises(ValueError, match="no evaluated update in common"):
    report.report(run, tmp_path / "b")
  (run / "run.json").write_text('{"a')
  with pytest.raises(ValueError, match=r"run\.json is not JSON"):
    report.report(run)
