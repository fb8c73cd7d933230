"""Metrics survive kills and resumes, and every line is JSON."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from steppo_jax.storage import metrics


def test_means_are_weighted_by_what_was_summed():
  mean = metrics.Mean()
  mean.add({"loss": (6.0, 2), "kl": (jnp.float32(1.0), jnp.int32(4))})
  mean.add({"loss": (np.float32(6.0), np.int64(1)), "empty": (0.0, 0.0)})
  result = mean.result()
  # (6 + 6) / (2 + 1) = 4; the mean of the parts would be (3 + 6) / 2.
  assert result["loss"] == 4.0
  assert result["kl"] == 0.25
  assert math.isnan(result["empty"])


def test_a_value_that_is_no_pair_is_an_error():
  with pytest.raises(ValueError, match="'loss' must be a"):
    metrics.Mean().add({"loss": 1.0})


def test_numbers_of_any_kind_come_back(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(
      np.int64(1),
      {
        "int": np.int32(3),
        "jax": jnp.float32(0.5),
        "half": jnp.bfloat16(0.25),
        "one": np.array([2.5]),
        "flag": np.bool_(True),
        "text": "cpu",
      },
    )
  (line,) = metrics.read_jsonl(tmp_path)
  assert line == {
    "update": 1,
    "int": 3,
    "jax": 0.5,
    "half": 0.25,
    "one": 2.5,
    "flag": True,
    "text": "cpu",
  }
  assert list((tmp_path / "tensorboard").iterdir())


def test_numbers_that_are_not_finite_are_null_and_read_as_nan(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {"a": math.nan, "b": np.float32(np.inf), "c": 1.0})

  def refuse(text):
    raise AssertionError(f"{text} is not JSON")

  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text, parse_constant=refuse)["b"] is None
  (line,) = metrics.read_jsonl(tmp_path)
  assert math.isnan(line["a"])
  assert math.isnan(line["b"])
  assert line["c"] == 1.0


def test_an_array_is_not_a_metric(tmp_path):
  with (
    metrics.MetricsWriter(tmp_path) as writer,
    pytest.raises(ValueError, match=r"'ratios' .* shape \(3,\)"),
  ):
    writer.write(1, {"ratios": np.ones(3)})


def test_resuming_removes_the_lines_that_will_be_made_again(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    for update in (1, 2, 3, 4):
      writer.write(update, {"loss": update})
  with metrics.MetricsWriter(tmp_path, resumed=2) as writer:
    writer.write(3, {"loss": 30})
  lines = metrics.read_jsonl(tmp_path)
  assert [(x["update"], x["loss"]) for x in lines] == [(1, 1), (2, 2), (3, 30)]


def test_a_new_run_does_not_write_behind_another(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {"loss": 1})
  with pytest.raises(ValueError, match="resume that run or choose another"):
    metrics.MetricsWriter(tmp_path)


def test_a_torn_last_line_is_left_out_and_a_resume_removes_it(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {"loss": 1})
    writer.write(2, {"loss": 2})
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(path.read_bytes()[:-7])
  assert [x["update"] for x in metrics.read_jsonl(path)] == [1]
  with metrics.MetricsWriter(tmp_path, resumed=1) as writer:
    writer.write(2, {"loss": 20})
  assert [x["loss"] for x in metrics.read_jsonl(path)] == [1, 20]


def test_a_broken_line_before_the_last_is_an_error(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"update": 1}\n{"upd\n{"update": 3}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*remove it"):
    metrics.read_jsonl(path)


def test_a_folder_without_metrics_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no metrics at"):
    metrics.read_jsonl(tmp_path)


def test_a_kill_leaves_whole_lines(tmp_path):
  code = (
    "import itertools, sys; from steppo_jax.storage import metrics\n"
    "writer = metrics.MetricsWriter(sys.argv[1])\n"
    "for i in itertools.count(): writer.write(i, {'loss': i, 'x': 'y' * 500})\n"
  )
  process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
  path = tmp_path / "metrics.jsonl"
  deadline = time.time() + 30
  while not path.exists() or path.stat().st_size < 100_000:
    assert time.time() < deadline
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  lines = metrics.read_jsonl(tmp_path)
  assert [x["update"] for x in lines] == list(range(len(lines)))
  assert len(lines) > 100
