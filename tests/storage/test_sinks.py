"""Sinks show what a run writes, once, and cannot stop it."""

import json
import logging
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppo_jax.storage import metrics, sinks
from steppo_jax.storage.options import MetricsConfig


class Recorder:
  """A sink that keeps what it is given, and fails when it is told to."""

  shown: list = ()
  broken: frozenset = frozenset()
  closed = 0

  def __init__(self, run):
    if "init" in self.broken:
      raise OSError("no such server")
    type(self).run = run

  def write(self, update, values):
    if update in self.broken:
      raise ConnectionError(f"lost at {update}")
    self.shown.append((update, dict(values)))

  def close(self):
    type(self).closed += 1
    if "close" in self.broken:
      raise TimeoutError("it does not answer")


@pytest.fixture
def recorder(monkeypatch):
  """A sink named "recorder", whose package is one that is there."""
  made = type("Recorder", (Recorder,), {"shown": [], "broken": frozenset()})
  monkeypatch.setitem(sinks._SINKS, "recorder", (made, "json"))
  return made


_ONLY = MetricsConfig(sinks=("recorder",))


def _write(folder, updates, *, resumed=None, config=_ONLY):
  with metrics.MetricsWriter(
    folder, resumed=resumed, sinks=config, options={"a.b": [1]}
  ) as writer:
    for update in updates:
      writer.write(
        update,
        {"eval/success": update / 10, "none": math.nan, "panel": "ab", "n": 2},
      )


def test_a_sink_gets_the_finite_numbers_under_their_names(tmp_path, recorder):
  _write(tmp_path / "run", [0, 1])
  assert recorder.shown == [
    (0, {"eval/success": 0.0, "n": 2.0}),
    (1, {"eval/success": 0.1, "n": 2.0}),
  ]
  assert recorder.run.name == "run"
  assert recorder.run.options == {"a.b": "[1]"}
  assert recorder.closed == 1


@settings(max_examples=15)  # Each line is made sure of on the disk.
@given(
  sessions=st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4
  )
)
def test_no_step_is_shown_twice_wherever_a_run_goes_on(
  tmp_path_factory, sessions
):
  """A session goes back to its checkpoint, and on to some update after it."""
  with pytest.MonkeyPatch.context() as patch:
    made = type("Recorder", (Recorder,), {"shown": []})
    patch.setitem(sinks._SINKS, "recorder", (made, "json"))
    folder = tmp_path_factory.mktemp("run")
    done, names = -1, set()
    for back, on in sessions:
      # The first begins at update 0; -1 is a start over without a checkpoint.
      saved = max(-1, done - back)
      _write(folder, range(saved + 1, saved + 1 + on), resumed=saved or -1)
      names.add(made.run.id)
      done = max(done, saved + on)
    shown = [update for update, _ in made.shown]
    assert shown == list(range(done + 1))
    assert len(names) == 1
    lines = metrics.read_jsonl(folder) if shown else []
    assert len(lines) <= len(shown)


@pytest.mark.parametrize("resumed", [-1, 0])
def test_a_run_that_goes_on_from_its_beginning_is_the_same_run(
  tmp_path, recorder, resumed
):
  _write(tmp_path, [0])
  first = recorder.run.id
  _write(tmp_path, [1, 2], resumed=resumed)
  assert recorder.run.id == first
  assert [update for update, _ in recorder.shown] == [0, 1, 2]


def test_a_sink_that_fails_is_counted_and_told_once(tmp_path, recorder, caplog):
  recorder.broken = frozenset({1, 2, "close"})
  with caplog.at_level(logging.WARNING):
    _write(tmp_path, range(5))
  told = [r.getMessage() for r in caplog.records]
  assert len(told) == 2
  assert "recorder failed (ConnectionError: lost at 1)" in told[0]
  assert told[1] == "metrics sink recorder failed 3 times"
  # It is given what comes later, and the run's own record is whole.
  assert [update for update, _ in recorder.shown] == [0, 3, 4]
  lines = metrics.read_jsonl(tmp_path)
  assert [line["eval/success"] for line in lines] == [0.0, 0.1, 0.2, 0.3, 0.4]
  counted = [line.get("sinks/failures") for line in lines]
  assert counted == [None, None, 1, 2, 2]


def test_a_sink_that_cannot_begin_stops_nobody(tmp_path, recorder, caplog):
  recorder.broken = frozenset({"init"})
  both = MetricsConfig(sinks=("recorder", "tensorboard"))
  _write(tmp_path, [0, 1], config=both)
  assert "recorder failed (OSError: no such server)" in caplog.text
  assert not recorder.shown
  assert not recorder.closed
  assert list((tmp_path / "tensorboard").iterdir())
  assert len(metrics.read_jsonl(tmp_path)) == 2


def test_an_order_to_stop_is_no_failure_of_a_sink(tmp_path, recorder):
  recorder.write = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
  with pytest.raises(KeyboardInterrupt):
    _write(tmp_path, [0])


def test_a_missing_package_is_refused_with_what_to_install(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sinks._SINKS, "wandb", (Recorder, "no_such_package"))
  wanted = "needs the package no_such_package: pip install 'steppo_jax[wandb]'"
  with pytest.raises(ValueError, match=re.escape(wanted)):
    sinks.check(MetricsConfig(sinks=("tensorboard", "wandb")))
  with pytest.raises(ValueError, match=r"metrics\.sinks=board is none of"):
    sinks.check(MetricsConfig(sinks=("board",)))
  # What Weights & Biases leaves where it ran is no package of that name.
  (tmp_path / "no_such_package").mkdir()
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(ValueError, match="needs the package"):
    sinks.check(MetricsConfig(sinks=("wandb",)))


def test_runs_that_only_tensorboard_shows_keep_no_state(tmp_path):
  _write(tmp_path, [0, 1], config=MetricsConfig())
  assert not (tmp_path / sinks.FILE_NAME).exists()
  _write(tmp_path / "none", [0, 1], config=MetricsConfig(sinks=()))
  assert not (tmp_path / "none" / "tensorboard").exists()


def test_a_state_that_is_broken_costs_repeats_and_no_run(
  tmp_path, recorder, caplog
):
  _write(tmp_path, [0, 1])
  (tmp_path / sinks.FILE_NAME).write_text("{")
  _write(tmp_path, [1], resumed=-1)
  assert "sinks show some steps twice" in caplog.text
  assert json.loads((tmp_path / sinks.FILE_NAME).read_text())["last"] == {
    "recorder": 1
  }


@given(st.text(max_size=20))
def test_names_that_mlflow_takes_stay_as_they_are(name):
  plain = sinks._plain_name(name)
  assert re.fullmatch(r"[/\w.\- :]*", plain)
  assert len(plain) == len(name)
  if re.fullmatch(r"[/\w.\- :]*", name):
    assert plain == name
