"""Metrics and events of runs, whatever their files hold."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest
import recorded_runs

from steppo_jax.viewer import runs


def test_lines_of_metrics_that_are_damaged_or_cut_are_told(tmp_path):
  run_folder = recorded_runs.make(tmp_path / "run", updates=3)
  with open(run_folder / "metrics.jsonl", "ab") as file:
    file.write(b'not json\n[1]\n{"update": 4, "x": 1.5}\n{"update": 5, "x')
  run = runs.Run(
    0, run_folder, cache=tmp_path / "cache",
    load_tokenizer=lambda _: recorded_runs.tokenizer(),
  )  # fmt: skip
  assert [line["update"] for line in run.lines()] == [1, 2, 3, 4]
  assert run.state()["faults"] == {"metrics.jsonl": "2 lines cannot be read"}
  with open(run_folder / "metrics.jsonl", "ab") as file:
    file.write(b'": 2.5}\n')
  assert run.lines()[-1] == {"update": 5, "x": 2.5}
  (curve,) = runs.curves([run], "x", "update", apart=False)
  assert curve["y"] == [1.5, 2.5]
  run.close()


_VALUES = st.one_of(
  st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(),
  st.text("aé1", max_size=3), st.lists(st.integers(0, 3), max_size=2),
  st.dictionaries(st.sampled_from(["t", "update"]), st.floats(0, 9)),
)  # fmt: skip
_NAMES = (
  "update", "minutes", "rollout/episodes", "eval/success", "eval/episodes", "x",
  "event", "at", "t", "t0", "t1", "seconds",
)  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bare")
  (folder / "config.json").write_text("{}")
  run = runs.Run(
    0, folder, cache=folder / "cache",
    load_tokenizer=lambda _: recorded_runs.tokenizer(),
  )  # fmt: skip
  yield run
  run.close()


@hypothesis.given(
  st.lists(st.dictionaries(st.sampled_from(_NAMES), _VALUES), max_size=4),
  st.sampled_from(["update", "minutes", "episodes"]),
  st.booleans(),
)
@hypothesis.example([{"seconds": {}, "t1": 10**309}], "update", False)
def test_whatever_lines_hold_curves_and_times_can_be_sent(bare, lines, x, cut):
  text = "".join(json.dumps(line) + "\n" for line in lines)[
    : -3 if cut else None
  ]
  for name in ("metrics.jsonl", "events.jsonl"):
    (bare.path / name).unlink(missing_ok=True)
    (bare.path / name).write_text(text)
  names = runs.names([bare])
  for name in (*names, "eval/success"):
    for curve in runs.curves([bare], name, x, apart=cut):
      json.dumps(curve, allow_nan=False)
      assert len(curve["x"]) == len(curve["y"]) == len(curve["updates"])
  json.dumps(bare.state(), allow_nan=False)
  bare.times()
