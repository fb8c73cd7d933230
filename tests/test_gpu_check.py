"""`make gpu-check` on a small model: all parts run, and none stops another."""

import json
import os
import sys

import pytest
import tpu_tools

sys.path.insert(0, str(tpu_tools.ROOT / "benchmarks"))

import gpu_check
import gpu_parts


def checked(out, *args):
  """Status, lines by part and summary of a small run."""
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  if cache:
    args += ("--cache", cache)
  status = gpu_check.main(["--small", "--out", str(out), *args])
  text = (out / "results.jsonl").read_text()
  lines = [json.loads(x) for x in text.splitlines()]
  parts = {}
  for line in lines:
    parts.setdefault(line.pop("part"), []).append(line)
  return status, parts


@pytest.mark.slow
def test_a_part_that_ends_badly_stops_no_other(tmp_path, monkeypatch):
  monkeypatch.setattr(gpu_check, "PARTS", {"decode": 0.3, "gap": 300})
  status, parts = checked(tmp_path, "--parts", "decode,gap")
  assert status == 1
  assert parts["decode"][-1]["ended"] == "stopped after its 0 s"
  assert parts["gap"][-1]["ended"] == "ok"
  (found,) = (x for x in parts["gap"] if x.get("compute") == "float32")
  # Float32 on CPU: sampler and learner differ by rounding alone.
  assert found["tokens"] == 2 * gpu_parts.SMALL.new
  assert found["mean"] < 1e-5
  # What a part has found is kept although it was stopped.
  assert not parts["wheels"][-1]["installed"]


def test_all_parts_have_a_function_and_fit_the_limit():
  assert list(gpu_check.PARTS) == list(gpu_parts.FUNCTIONS)
  with pytest.raises(SystemExit):
    gpu_check.main(["--parts", "sing"])


@pytest.mark.slow
def test_the_whole_check_runs_small(tmp_path, monkeypatch):
  monkeypatch.setattr(gpu_check, "PARTS", dict.fromkeys(gpu_check.PARTS, 900.0))
  status, parts = checked(tmp_path, "--limit", "3600")
  assert status == 0, parts
  assert {x["slots"] for x in parts["decode"] if "tokens_per_s" in x} == {1, 2}
  assert 0 < parts["update"][-2]["mfu"] < 1
  # A warm cache saves most of the compiling.
  compiled = lambda name: next(
    x["compiled"] - x["weights"] for x in parts[name] if "compiled" in x
  )
  assert compiled("warm_start") < 0.7 * compiled("cold_start")
  assert any("supervised/loss" in x for x in parts["supervised"])
  assert any(x.get("update") == 1 for x in parts["steppo"])
