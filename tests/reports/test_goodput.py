"""Every second belongs to one cause, and the report says to which."""

import json

import jax
import jax.numpy as jnp
import pytest

from steppo_jax.reports import goodput
from steppo_jax.storage import compile_events, events


class Clock:
  """Seconds that pass when they are told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def passes(self, seconds):
    self.now += seconds


@pytest.fixture
def clock():
  return Clock()


def lines(folder):
  return [
    json.loads(line)
    for line in (folder / events.FILE_NAME).read_text().splitlines()
  ]


def test_inner_time_is_not_counted_for_the_outer_cause(tmp_path, clock):
  with events.Log(tmp_path, age_s=2.0, clock=clock) as log:
    with log.span(events.ROLLOUT, 3):
      clock.passes(1.0)
      with log.waiting():
        clock.passes(4.0)
        with log.span(events.COMPILE):
          clock.passes(0.5)
      clock.passes(0.25)
    clock.passes(0.125)
  first, _, line, last = lines(tmp_path)
  assert (first["event"], first["t"], last["t"]) == ("start", 2.0, 7.875)
  assert line == {
    "t0": 2.0, "t1": 7.75, "update": 3,
    "seconds": {"compile": 0.5, "environment": 4.0, "rollout": 1.25},
  }  # fmt: skip
  found = goodput.read(tmp_path)
  assert found.wall_s == 7.875
  assert found.seconds["setup"] == 2.0
  assert found.idle_s == pytest.approx(0.125)
  assert found.accounted == pytest.approx(7.75 / 7.875)
  assert found.by_update == {3: line["seconds"]}


def test_what_is_told_afterwards_is_counted_once(tmp_path, clock):
  with events.Log(tmp_path, clock=clock) as log:
    log.ended(events.COMPILE, 1.0)  # Outside of any span: not of the run.
    with log.span(events.UPDATE, 0):
      clock.passes(1.0)
      log.ended(events.COMPILE, 0.25)  # 0.75 to 1
      clock.passes(2.0)
      log.ended(events.COMPILE, 2.5)  # 0.5 to 3, with the one before in it
      clock.passes(1.0)
      log.ended(events.COMPILE, 9.0)  # Longer than the span: all of it.
  assert lines(tmp_path)[1]["seconds"] == {"compile": 4.0, "update": 0.0}


def test_sessions_that_were_killed_are_added_up(tmp_path, clock):
  with (
    events.Log(tmp_path, clock=clock) as first,
    first.span(events.UPDATE, 0),
  ):
    clock.passes(3.0)
  # A kill amid the last line.
  path = tmp_path / events.FILE_NAME
  path.write_bytes(path.read_bytes()[:-9])
  with (
    events.Log(tmp_path, clock=clock) as second,
    second.span(events.UPDATE, 0),
  ):
    clock.passes(2.0)
  found = goodput.read(tmp_path)
  assert (found.sessions, found.wall_s) == (2, 5.0)
  assert found.seconds["update"] == 5.0
  assert found.accounted == 1.0
  text = "\n".join(goodput.table(tmp_path))
  assert "5.0 s in 2 sessions, of which 100.0 % have a cause" in text
  assert "| update | 5.0 | 100.0 % |" in text


def test_a_span_ends_with_its_line_though_something_is_raised(tmp_path, clock):
  def fails(log):
    with log.span(events.ROLLOUT), log.waiting():
      clock.passes(1.0)
      raise KeyError

  with events.Log(tmp_path, clock=clock) as log, pytest.raises(KeyError):
    fails(log)
  assert lines(tmp_path)[-2]["seconds"] == {"environment": 1.0, "rollout": 0.0}


def test_compiling_is_told_apart_from_running(tmp_path):
  with (
    events.Log(tmp_path) as log,
    compile_events.counts_compiles(log),
    log.span(events.UPDATE, 0),
  ):
    # Of a shape that no other test has compiled in this process.
    jax.jit(lambda x: jnp.sin(x) * 17)(jnp.ones(1237)).block_until_ready()
  jax.jit(lambda x: jnp.cos(x) * 17)(jnp.ones(1238)).block_until_ready()
  assert lines(tmp_path)[1]["seconds"]["compile"] > 0
  assert not compile_events._logs


def test_a_run_without_a_log_is_reported_without_its_time(tmp_path):
  assert goodput.read(tmp_path) is None
  assert goodput.table(tmp_path) == []


def test_a_log_that_cannot_be_written_is_said_with_its_path(tmp_path):
  (tmp_path / events.FILE_NAME).mkdir()
  with pytest.raises(RuntimeError, match=r"cannot write .*events\.jsonl"):
    events.Log(tmp_path)


def test_a_process_knows_its_age():
  assert 0 <= events.process_age() < 24 * 3600
