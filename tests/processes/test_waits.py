"""Parties that wait for each other: who, for whom, and since when, is told."""

import contextlib
import itertools
import logging
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.processes import waits
from steppo_jax.rollout import options
from steppo_jax.storage import events


class Notes(list):
  """Events as they are told."""

  def __call__(self, event, **fields):
    self.append((event, fields))


@contextlib.contextmanager
def waiting(*edges):
  """Threads that wait, each for another party."""
  go, there = threading.Event(), threading.Barrier(len(edges) + 1)

  def wait(who, whom):
    with waits.on(who, whom, f"what {whom} gives"):
      there.wait(10)
      go.wait(10)

  threads = [threading.Thread(target=wait, args=edge) for edge in edges]
  for thread in threads:
    thread.start()
  there.wait(10)
  try:
    yield
  finally:
    go.set()
    for thread in threads:
      thread.join()


def test_a_long_wait_is_told_with_who_whom_and_since_when(caplog):
  notes, began = Notes(), time.time()
  watch, start = waits.Watch(60.0, notes), time.monotonic()
  with caplog.at_level(logging.INFO):
    with waiting(("learner", "rollouts"), ("rollouts", "environments")):
      watch.look(start + 59)  # Not too long yet.
      assert not notes
      watch.look(start + 80)
      watch.look(start + 139)  # Told within the limit: not again.
    ((event, fields),) = notes[:1]
    assert event == "waiting"
    told = {w["who"]: w for w in fields["waits"]}
    assert told["learner"]["whom"] == "rollouts"
    assert told["rollouts"]["whom"] == "environments"
    assert told["rollouts"]["what"] == "what environments gives"
    for one in told.values():
      # As the clock was set ahead by the same.
      assert 60 <= one["seconds"] <= 80
      assert began - 80 <= one["since"] <= time.time() - one["seconds"]
    assert "circle" not in fields
  # And how long it took in the end.
  over = [fields for event, fields in notes[1:] if event == "went_on"]
  assert {one["who"] for one in over} == {"learner", "rollouts"}
  assert all(one["waited"] > 0 for one in over)
  assert len(notes) == 3
  assert "learner: waiting for rollouts since" in caplog.text
  assert "rollouts: went on after" in caplog.text
  assert not waits.current()


def test_it_is_told_again_after_each_further_limit():
  notes, start = Notes(), time.monotonic()
  watch = waits.Watch(60.0, notes)
  with waits.on("learner", "rollouts", "episodes"):
    for later in (80, 100, 120, 141, 199, 202):
      watch.look(start + later)
  ages = [fields["waits"][0]["seconds"] for _, fields in notes[:-1]]
  np.testing.assert_allclose(ages, [80, 141, 202], atol=5)


def test_what_is_no_fault_is_told_where_another_waits_for_it():
  notes, start = Notes(), time.monotonic()
  watch = waits.Watch(60.0, notes)
  with waits.on("learner", "devices", "update 3", counts=False):
    watch.look(start + 100)
    assert not notes
    with waiting(("rollouts", "learner")):
      watch.look(start + 200)
  told = [(w["who"], w["whom"]) for w in notes[0][1]["waits"]]
  assert told == [("rollouts", "learner"), ("learner", "devices")]


def test_the_chain_is_told_down_to_its_end():
  """Those who have waited for a short time are why the others wait."""
  notes = Notes()
  watch, start = waits.Watch(60.0, notes), time.monotonic()
  with waiting(("learner", "rollouts")):
    first = waits.current()[0]
    first.since -= 60
    with waiting(
      ("environments", "a"), ("rollouts", "environments"), ("x", "y")
    ):
      watch.look(start + 30)
  told = [(w["who"], w["whom"]) for w in notes[0][1]["waits"]]
  assert told[0] == ("learner", "rollouts")
  assert set(told[1:]) == {("rollouts", "environments"), ("environments", "a")}


def test_those_who_wait_for_each_other_are_named_as_a_circle(caplog):
  notes, start = Notes(), time.monotonic()
  edges = [("a", "b"), ("x", "a"), ("b", "c"), ("c", "a")]
  with waiting(*edges), caplog.at_level(logging.WARNING):
    waits.Watch(60.0, notes).look(start + 100)
  circle = notes[0][1]["circle"]
  assert circle[0] == circle[-1]
  assert set(circle) == {"a", "b", "c"}
  assert "they wait for each other: " in caplog.text


@given(
  st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), max_size=9
  )
)
def test_a_circle_is_found_where_there_is_one_and_nowhere_else(edges):
  found = waits.circle(
    [waits.Wait(who, whom, "", 0.0, True) for who, whom in edges]
  )
  # The slow way: who is reached from whom, step by step.
  reached = set(edges)
  for _ in range(6):
    reached |= {(a, d) for a, b in reached for c, d in edges if b == c}
  assert bool(found) == any((x, x) in reached for x in "abcdef")
  if found:
    assert found[0] == found[-1]
    assert set(itertools.pairwise(found)) <= set(edges)
    assert len(set(found)) == len(found) - 1


def test_long_lists_and_many_waits_are_cut():
  assert waits.named(["a", "b"]) == "a, b"
  assert waits.named([str(n) for n in range(11)]).endswith("7 and 3 more")
  notes = Notes()
  with waiting(*[(f"episode {n}", "environments") for n in range(30)]):
    waits.Watch(60.0, notes).look(time.monotonic() + 100)
  assert len(notes[0][1]["waits"]) == 20


def test_a_watch_that_has_ended_tells_nothing():
  notes = Notes()
  watch = waits.Watch(0.01, notes)
  with contextlib.ExitStack() as stack:
    stack.enter_context(waits.on("learner", "rollouts", "episodes"))
    with watch:
      until = time.monotonic() + 10
      while not notes and time.monotonic() < until:
        time.sleep(0.005)
    told = len(notes)
    watch.look(time.monotonic() + 100)
  assert len(notes) == told >= 1


def test_the_event_log_takes_it_from_any_thread(tmp_path):
  with (
    events.Log(tmp_path) as log,
    waits.Watch(0.02, log.note),
    log.span(events.ROLLOUT, 0),
    waits.on("learner", "rollouts", "episodes 0-0-0 of update 0"),
  ):
    time.sleep(0.1)
  text = (tmp_path / events.FILE_NAME).read_text()
  assert '"event": "waiting"' in text
  assert '"event": "went_on"' in text
  assert "episodes 0-0-0 of update 0" in text


@pytest.mark.parametrize("wrong", [0, -1.0])
def test_a_limit_is_above_zero(wrong):
  with pytest.raises(ValueError, match=r"stall_seconds=.* must be above 0"):
    options.RolloutConfig(stall_seconds=wrong)


def test_what_cannot_be_told_ends_no_watch():
  notes = Notes()
  with (
    waits.Watch(0.05, notes),
    waits.on("learner", "rollouts", lambda: str(1 // 0)),
  ):
    while len(notes) < 2:  # Told again after each further limit.
      time.sleep(0.01)
  event, fields = notes[1]
  assert event == "waiting"
  assert fields["waits"][0]["what"].startswith("not known (ZeroDivisionError")


@given(st.integers(0, 2))
def test_a_wait_that_ends_while_it_is_told_is_over_after_that(turn):
  notes, watch = Notes(), None
  with contextlib.ExitStack() as stack:
    ended = itertools.count()

    def what():  # Asked for twice each time that it is told.
      if next(ended) == turn:
        stack.close()
      return "bread"

    watch = waits.Watch(60.0, notes)
    stack.enter_context(waits.on("learner", "rollouts", what))
    watch.look(time.monotonic() + 61)
  told = ["waiting", "went_on"] if turn == 2 else []
  assert [event for event, _ in notes] == told


def test_what_learner_and_rollouts_waited_is_summed_by_whom_for():
  before = waits.took()
  for n in range(2):
    with waits.on(waits.ROLLOUTS, waits.SAMPLER, "2 responses"):
      time.sleep(0.01)
    # As many as there are episodes: they would be kept for ever.
    with waits.on(waits.ENVIRONMENTS, f"episode {n}", "its answer"):
      pass
  after = waits.took()
  pair = waits.ROLLOUTS, waits.SAMPLER
  assert after[pair] - before.get(pair, 0.0) >= 0.02
  assert {who for who, _ in after} <= {waits.LEARNER, waits.ROLLOUTS}
