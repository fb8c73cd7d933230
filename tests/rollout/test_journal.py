"""Nothing that was acknowledged is lost, and nothing else is believed."""

import dataclasses
import logging
import shutil

import full_disks
import numpy as np
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from steppo_jax.rollout import codec as trajectory_bytes
from steppo_jax.rollout import journal

BELONGS = {"update": 3, "seed": 0, "policy": "a1", "episodes": ["e0", "e1"]}


def fill(path, trajectories, *, end=None):
  with journal.Journal(path, BELONGS) as book:
    for trajectory in trajectories:
      book.append(trajectory)
    if end is not None:
      book.finish(end)


@pytest.fixture
def path(tmp_path):
  return journal.path_of(tmp_path / "journal", 3, 0)


def broken():
  whole = worlds.trajectories()[0]
  return dataclasses.replace(
    whole, uid="broken", steps=(), final_prompt_ids=None, success=False,
    error="TimeoutError: no answer", retried=("OSError: gone", "x\ny"),
    scores={"f1": 0.1 + 0.2},
  )  # fmt: skip


def test_trajectories_come_back_to_the_last_bit(path):
  written = [*worlds.trajectories(), broken()]
  fill(path, written, end={"counters": {"decode_steps": 7}})
  found = journal.read(path)
  assert found.belongs == BELONGS
  assert found.end == {"counters": {"decode_steps": 7}}
  assert list(found.trajectories) == [t.uid for t in written]
  for old, new in zip(written, found.trajectories.values(), strict=True):
    assert journal.same(old, new)
    for name in ("uid", "task", "success", "error", "retried", "scores"):
      assert getattr(old, name) == getattr(new, name)
    np.testing.assert_array_equal(old.final_prompt_ids, new.final_prompt_ids)
    for a, b in zip(old.steps, new.steps, strict=True):
      for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
          assert (x.dtype, x.tobytes()) == (y.dtype, y.tobytes()), field.name
        else:
          assert x == y, field.name


def test_a_record_without_a_mask_of_thoughts_is_read():
  # As older versions wrote them.
  whole = worlds.trajectories()[0]
  steps = tuple(
    dataclasses.replace(step, reasoning_mask=None) for step in whole.steps
  )
  old = dataclasses.replace(whole, steps=steps)
  head, data = trajectory_bytes.encode(old)
  for line in head["steps"]:
    assert line.pop("reasoning") is None
  found = trajectory_bytes.decode(head, data)
  assert trajectory_bytes.encode(found) == trajectory_bytes.encode(old)
  assert trajectory_bytes.encode(found) != trajectory_bytes.encode(whole)
  assert all(step.reasoning_mask is None for step in found.steps)


def test_a_difference_in_one_bit_is_a_difference():
  one = worlds.trajectories()[0]
  first = one.steps[0]
  logps = first.behaviour_logp.copy()
  logps[0] = np.nextafter(logps[0], -np.inf)
  steps = (
    dataclasses.replace(first, behaviour_logp=logps), *one.steps[1:]
  )  # fmt: skip
  assert not journal.same(one, dataclasses.replace(one, steps=steps))


def test_wherever_a_kill_cuts_what_is_whole_stays(path, tmp_path, caplog):
  played = worlds.trajectories()[:3]
  sizes = []
  with journal.Journal(path, BELONGS) as book:
    sizes.append(path.stat().st_size)
    for trajectory in played:
      book.append(trajectory)
      sizes.append(path.stat().st_size)
  for cut in {*range(sizes[0], sizes[-1], 97), *sizes, sizes[1] + 1,
              sizes[-1] - 1}:  # fmt: skip
    copy = tmp_path / "copy.journal"
    shutil.copy(path, copy)
    with copy.open("r+b") as file:
      file.truncate(cut)
    caplog.clear()
    whole = sum(size <= cut for size in sizes) - 1
    with (
      caplog.at_level(logging.WARNING),
      journal.Journal(copy, BELONGS) as book,
    ):
      assert list(book.trajectories) == [t.uid for t in played[:whole]]
      assert ("cut off" in caplog.text) == (cut not in sizes)
      for trajectory in played:
        book.append(trajectory)
    # What was cut and written again is what was never cut.
    assert copy.read_bytes() == path.read_bytes()


def test_a_flipped_bit_is_noticed_in_every_frame(path, tmp_path):
  played = worlds.trajectories()[:3]
  fill(path, played, end={})
  whole = path.read_bytes()
  with journal.Journal(tmp_path / "head", BELONGS):
    header = (tmp_path / "head").stat().st_size
  copy = tmp_path / "copy.journal"
  for place in range(header, len(whole), 53):
    copy.write_bytes(
      whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
    )
    found = journal.read(copy)
    assert found.end is None
    assert len(found.trajectories) < 4
    for uid, trajectory in found.trajectories.items():
      old = next(t for t in played if t.uid == uid)
      assert journal.same(old, trajectory)


def test_what_is_there_is_not_written_twice(path):
  one, two = worlds.trajectories()[:2]
  fill(path, [one, one, two])
  size = path.stat().st_size
  fill(path, [two, one])
  assert path.stat().st_size == size
  assert list(journal.read(path).trajectories) == [one.uid, two.uid]


@pytest.mark.parametrize(
  "change", [{"policy": "b2"}, {"update": 4}, {"episodes": ["e0"]}]
)
def test_episodes_of_another_policy_are_set_aside(path, caplog, change):
  fill(path, worlds.trajectories()[:2])
  old = path.read_bytes()
  with (
    caplog.at_level(logging.WARNING),
    journal.Journal(path, BELONGS | change) as book,
  ):
    assert not book.trajectories
  aside = path.with_name(path.name + ".stale")
  assert aside.read_bytes() == old
  assert f"it is now {aside}" in caplog.text


@pytest.mark.parametrize("data", [b"", b"x", b"something else" * 99])
def test_a_file_that_is_no_journal_is_never_believed(path, data):
  path.parent.mkdir(parents=True)
  path.write_bytes(data)
  with pytest.raises(ValueError, match="is no journal"):
    journal.read(path)
  fill(path, worlds.trajectories()[:1])
  assert len(journal.read(path).trajectories) == 1


def test_a_disk_that_cannot_be_written_is_said_with_its_path(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(RuntimeError, match=r"cannot write the journal.*run_dir"):
    journal.Journal(tmp_path / "file" / "0-0.journal", BELONGS)


@settings(max_examples=60)
@given(share=st.floats(0, 1))
def test_a_disk_that_fills_up_takes_an_episode_whole_or_says_so(
  share, tmp_path_factory
):
  folder = tmp_path_factory.mktemp("full")
  fill(folder / "whole", worlds.trajectories()[:3], end={})
  size = (folder / "whole").stat().st_size
  path, taken, said = folder / "some", [], None
  try:
    with (
      full_disks.full_after(int(share * size)),
      journal.Journal(path, BELONGS) as book,
    ):
      for one in worlds.trajectories()[:3]:
        book.append(one)
        taken.append(one.uid)
      book.finish({})
  except RuntimeError as error:
    said = str(error)
  ended = share == 1
  assert ended or "cannot write the journal" in said
  if taken:
    found = journal.read(path)
    assert list(found.trajectories) == taken
    assert (found.end is not None) == ended
  # There is room again: what is missing is written behind what was taken.
  fill(path, worlds.trajectories()[:3], end={})
  found = journal.read(path)
  assert list(found.trajectories) == [t.uid for t in worlds.trajectories()[:3]]
  assert found.end == {}


def test_journals_go_when_neither_restart_nor_viewer_needs_them(tmp_path):
  for name in (*(f"{u}-0.journal" for u in range(6)), "1-0.journal.stale",
               "1-1.journal", "notes.txt"):  # fmt: skip
    (tmp_path / name).write_text("")
  journal.prune(tmp_path, needed_from=4, keep=1)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "3-0.journal", "4-0.journal", "5-0.journal", "notes.txt",
  ]  # fmt: skip
  journal.prune(tmp_path / "missing", needed_from=9, keep=0)


def test_prompts_that_extend_each_other_are_stored_once(path):
  one = max(worlds.trajectories(), key=lambda t: len(t.steps))
  tokens = sum(len(s.prompt_ids) + len(s.response_ids) for s in one.steps)
  fill(path, [one])
  line = journal.read(path).trajectories[one.uid]
  assert len(line.steps) == len(one.steps) > 3
  prompts = len(one.final_prompt_ids)
  responses = sum(len(s.response_ids) for s in one.steps)
  head, arrays = trajectory_bytes.encode(one)
  # 4 bytes a token of the whole conversation, 5 more for each that was sampled.
  assert len(arrays) <= 4 * prompts + 5 * responses + 4 * responses
  assert len(arrays) < 4 * tokens
  assert head["steps"][1]["n"][0] > 0
