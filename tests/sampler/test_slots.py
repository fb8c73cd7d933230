"""Slots: every prompt ends up where it should, whatever was there before."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.sampler import slots

NUM, CONTEXT = 4, 24


class Memory:
  """What the device would hold: plain lists, copied and read in waves."""

  def __init__(self):
    self.cells = [[None] * CONTEXT for _ in range(NUM)]
    self.read = 0

  def run(self, reads):
    for wave in slots.waves(reads):
      before = [list(cells) for cells in self.cells]
      for one in wave:
        if one.source is not None:
          self.cells[one.slot][: one.start] = before[one.source][: one.start]
      for one in wave:
        end = one.start + len(one.ids)
        self.cells[one.slot][one.start : end] = list(one.ids)
        self.read += len(one.ids)


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=12)
rounds = st.lists(
  st.lists(
    st.tuples(st.integers(0, 6), prompts), max_size=NUM,
    unique_by=lambda pair: pair[0],
  ),
  max_size=8,
)  # fmt: skip


@given(rounds)
def test_after_its_reads_each_slot_holds_its_prompt(rounds):
  known, memory = slots.Slots(NUM, CONTEXT), Memory()
  present = set()
  for requests in rounds:
    for name in [n for n in present if n not in {r[0] for r in requests}]:
      known.release(str(name))  # makes room for the new ones
    present = {name for name, _ in requests}
    reads = []
    for name, prompt in requests:
      prompt = np.array(prompt, np.int32)
      reads.append(known.plan(str(name), prompt))
      assert len(reads[-1].ids) >= 1
    memory.run(reads)
    for one, (_, prompt) in zip(reads, requests, strict=True):
      assert memory.cells[one.slot][: len(prompt)] == prompt
      known.wrote(one.slot, np.array([7, 7], np.int32))
      memory.cells[one.slot][len(prompt) : len(prompt) + 2] = [7, 7]
    assert len({one.slot for one in reads}) == len(reads)


def test_a_new_session_takes_the_free_slot_that_holds_its_prompt():
  known = slots.Slots(3, CONTEXT)
  known.plan("a", np.array([1, 2, 3, 4]))
  known.plan("b", np.array([5, 6, 7, 8]))
  known.release("b")
  read = known.plan("c", np.array([5, 6, 7, 9]))
  assert (read.slot, read.source, read.start) == (1, None, 3)


def test_a_prefix_is_copied_if_it_saves_half_of_the_prompt():
  known = slots.Slots(3, CONTEXT)
  known.plan("a", np.array([1, 2, 3, 4]))
  read = known.plan("b", np.array([1, 2, 8, 9]))
  assert (read.slot, read.source, read.start) == (1, 0, 2)
  read = known.plan("c", np.array([1, 7, 8, 9]))
  assert (read.slot, read.source, read.start) == (2, None, 0)


def test_forgotten_contents_are_not_shared():
  known = slots.Slots(2, CONTEXT)
  known.plan("a", np.array([1, 2, 3, 4]))
  known.clear()
  assert known.plan("b", np.array([1, 2, 3, 4])).source is None
  assert known.plan("a", np.array([1, 2, 3, 4])).start == 0


def test_once_all_sessions_have_ended_a_rollout_starts_from_nothing():
  known = slots.Slots(3, CONTEXT)
  for name in "abc":
    known.plan(name, np.array([1, 2, 3, 4]))
  for name in "cab":
    known.release(name)
  read = known.plan("d", np.array([1, 2, 3, 4]))
  assert (read.slot, read.source, read.start) == (0, None, 0)


class DatedMemory(Memory):
  """The same, where each cell knows which weights made it."""

  version = 0

  def run(self, reads):
    super().run(
      [
        one._replace(ids=[(int(x), self.version) for x in one.ids])
        for one in reads
      ]
    )


@given(rounds, st.data())
def test_only_who_was_there_before_the_weights_keeps_what_others_made(
  rounds, data
):
  known, memory = slots.Slots(NUM, CONTEXT), DatedMemory()
  since = {}
  for requests in rounds:
    for name in [n for n in since if n not in {r[0] for r in requests}]:
      known.release(str(name))
      del since[name]
    if data.draw(st.booleans()):
      known.outlive()
      memory.version += 1
    reads = []
    for name, prompt in requests:
      since.setdefault(name, memory.version)
      reads.append(known.plan(str(name), np.array(prompt, np.int32)))
    memory.run(reads)
    for one, (name, prompt) in zip(reads, requests, strict=True):
      cells = memory.cells[one.slot][: len(prompt)]
      assert [x for x, _ in cells] == prompt
      assert all(since[name] <= made for _, made in cells)
      known.wrote(one.slot, np.array([7, 7], np.int32))
      memory.cells[one.slot][len(prompt) : len(prompt) + 2] = [
        (7, memory.version)
      ] * 2


def test_a_session_keeps_its_cache_until_it_ends_and_shares_it_with_nobody():
  known = slots.Slots(3, CONTEXT)
  prompt = np.array([1, 2, 3, 4])
  for name in "ab":
    known.plan(name, prompt)
  known.release("b")
  known.outlive()
  new = known.plan("c", prompt)
  assert (new.source, new.start) == (None, 0)
  assert known.plan("a", np.append(prompt, 5)).start == 4
  known.release("a")
  # What c has read is of the new weights, and what a kept is gone.
  assert known.plan("d", prompt).source == new.slot
