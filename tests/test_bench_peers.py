"""`make bench-peers`: what it compares, and what it says when it cannot."""

import json
import pathlib
import sys

import pytest

PEERS = pathlib.Path(__file__).parents[1] / "benchmarks" / "peers"
TINY = {
  "model": {
    "vocab_size": 64,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_width": 48,
    "rope_theta": 1e6,
    "norm_eps": 1e-6,
  },
  "decode": {"batches": [1, 2], "observe": 4, "sample": 3},
  "rollout": {"turns": [2], "episodes": 2, "observe": 4, "sample": 3},
  "update": {
    "trajectories": 2,
    "turns": 2,
    "observe": 4,
    "sample": 3,
    "clip_low": 0.2,
    "clip_high": 0.28,
    "learning_rate": 1e-5,
    "max_grad_norm": 1.0,
  },
  "repeats": 1,
  "budget_s": 5,
  "threads": 1,
}


@pytest.fixture
def run(monkeypatch):
  """The driver, imported as the command imports it."""
  monkeypatch.syspath_prepend(PEERS)
  import run

  yield run
  sys.modules.pop("run")


def side(row, seconds, loss=0.5, gap=0.0):
  """What a side writes."""
  update = {"kind": "update", "size": 10, "row": row, "median_s": seconds}
  decode = {"kind": "decode", "size": 8, "row": row, "median_s": seconds}
  return {
    "versions": {"jax": "1"},
    "logp_difference": gap,
    "rows": [
      update | {"loss": loss, "grad_norm": 2.0},
      decode | {"tokens_per_s": 100 / seconds},
    ],
  }


def write(folder, **sides):
  for name, found in sides.items():
    (folder / f"{name}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_ours_plays_and_is_written_as_table_plot_and_json(
  run, tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(run, "spec", lambda quick: TINY)
  assert run.main(["--peers", "--out", str(tmp_path)]) == 0
  printed = capfd.readouterr().out
  result = json.loads(printed.splitlines()[-1])
  assert result == json.loads((tmp_path / "results.json").read_text())
  work = [(row["kind"], row["size"]) for row in result["rows"]]
  assert work == [("decode", 1), ("decode", 2), ("rollout", 2), ("update", 2)]
  assert all(row["ours_over"] == 1 for row in result["rows"])
  assert "rollout, turns 2" in (tmp_path / "table.txt").read_text()
  assert (tmp_path / "peers.png").read_bytes()[:4] == b"\x89PNG"


def test_ratios_are_of_times_and_rows_without_a_time_say_why(run, tmp_path):
  slow = side("slow", 3.0)
  slow["rows"][1] = {"kind": "decode", "size": 8, "row": "slow", "error": "no"}
  write(tmp_path, ours=side("steppo_jax", 1.5), tunix=slow)
  found = run.read(tmp_path, ["ours", "tunix"], {})
  assert run.differences(found) == []
  by_row = {(x["kind"], x["row"]): x for x in run.compare(found)}
  assert by_row["update", "slow"]["ours_over"] == 2.0
  assert by_row["decode", "slow"]["error"] == "no"
  text = run.table(run.compare(found), {"transformers": "cannot be run: x"})
  assert "cannot: no" in text
  assert "transformers: cannot be run: x" in text


@pytest.mark.parametrize(
  ("peer", "message"),
  [
    (side("other", 1.0, loss=0.51), "other: loss differs by 0.02"),
    (side("other", 1.0, gap=0.1), "tunix: log-probs differ by 0.1"),
    (side("other", 1.0, gap=float("nan")), "tunix: log-probs differ by nan"),
    (
      side("other", 1.0) | {"logp_difference": None, "logp_error": "boom"},
      "tunix: no log-probs: boom",
    ),
  ],
)
def test_another_computation_fails_the_run(
  run, tmp_path, peer, message, capsys
):
  write(tmp_path, ours=side("steppo_jax", 1.0), tunix=peer)
  assert run.finish(tmp_path, ["ours", "tunix"], {}) == 1
  assert f"NOT THE SAME COMPUTATION: {message}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_or_run_says_why(
  run, tmp_path, monkeypatch
):
  (tmp_path / "requirements-tunix.txt").write_text("./missing.whl\n")
  monkeypatch.setattr(run, "HERE", tmp_path)
  with pytest.raises(RuntimeError, match=r"cannot be installed: .*missing"):
    run.environment("tunix", tmp_path)
  (tmp_path / "side.py").write_text("raise OSError('no such thing')\n")
  with pytest.raises(RuntimeError, match="cannot be run: OSError: no such"):
    run.run_side(sys.executable, "side.py", tmp_path)
  with pytest.raises(RuntimeError, match=r"cannot be run: .*No such file"):
    run.run_side(tmp_path / "nowhere", "side.py", tmp_path)
