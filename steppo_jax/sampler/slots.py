"""Who holds what: sessions, slots, and the prompt tokens still to be read."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steppo_jax import types


class PrefillPlan(NamedTuple):
  """What has to happen before a slot can answer.

  Attributes:
    slot: Where the prompt goes.
    source: Slot to copy the first `start` tokens from, None if `slot` holds
      them.
    start: Number of prompt tokens that need not be read.
    ids: [n] int32 prompt tokens to be read, at least one.
  """

  slot: int
  source: int | None
  start: int
  ids: np.ndarray


class Slots:
  """Which slot belongs to which session, and what each slot holds.

  Slots that are split over devices share prefixes within a device: they lie
  there in `parts` runs of equal length.
  """

  def __init__(self, num_slots: int, context: int, parts: int = 1):
    self._each = num_slots // parts
    self._part = np.arange(num_slots) // self._each
    self._held = np.zeros((num_slots, context), np.int32)
    self._length = np.zeros(num_slots, np.int32)
    # Whether a slot holds what weights made that are no more.
    self._outlived = np.zeros(num_slots, bool)
    self._of: dict[str, int] = {}
    self._free = collections.deque(range(num_slots))

  def clear(self) -> None:
    """Forgets the contents of all slots; sessions keep theirs."""
    self._length[:] = 0
    self._outlived[:] = False
    self._free = collections.deque(sorted(self._free))

  def outlive(self) -> None:
    """Takes in that the weights have changed, and sessions keep what they hold.

    They alone: whoever begins from now on shares none of it.
    """
    self._outlived[:] = False
    self._outlived[list(self._of.values())] = True
    self._length[~self._outlived] = 0
    self._free = collections.deque(sorted(self._free))

  def release(self, session: str) -> None:
    """Frees a session's slot, whose contents others may still share.

    With the last session everything is forgotten, so that what follows depends
    on nothing that came before: a sum may differ in its last bit from slot to
    slot, and a run that is resumed must give the same bits.
    """
    slot = self._of.pop(session, None)
    if slot is not None:
      self._free.append(slot)
      if self._outlived[slot]:
        self._outlived[slot], self._length[slot] = False, 0
    if not self._of:
      self.clear()

  def wrote(self, slot: int, ids: np.ndarray) -> None:
    """Appends sampled tokens that the slot has read."""
    start = self._length[slot]
    self._held[slot, start : start + len(ids)] = ids
    self._length[slot] = start + len(ids)

  def check_room(self, sessions: Sequence[str]) -> None:
    """Raises RuntimeError if new sessions outnumber the free slots."""
    new = [session for session in sessions if session not in self._of]
    if len(new) > len(self._free):
      raise RuntimeError(
        f"no free slot for session {new[len(self._free)]}: release ended "
        "sessions"
      )

  def plan(self, session: str, prompt: np.ndarray) -> PrefillPlan:
    """What to read so that the session's slot holds `prompt`.

    A session keeps its slot from turn to turn, and what that holds of the
    prompt. A new session takes the free slot that holds most of its prompt, or
    copies from the slot that does, if half of the prompt is saved and a slot
    of the same device is free.

    Args:
      session: Name of the session; a slot is free if it is new.
      prompt: [P] int32, P > 0.
    """
    source = None
    slot = self._of.get(session)
    # The last token is always read anew: its output starts the response.
    most = len(prompt) - 1
    if slot is not None:
      held = self._held[slot, : self._length[slot]]
      start = min(types.common_prefix(held, prompt), most)
    else:
      shared = np.minimum(self._shared(prompt), most)
      parts = self._part
      room = np.bincount(parts[list(self._free)], minlength=len(parts))[parts]
      # Of equals that whose device has most room, where a group can follow.
      slot = max(self._free, key=lambda free: (shared[free], room[free]))
      start = int(shared[slot])
      within_reach = np.where(room > 0, shared, 0)
      best = int(np.argmax(within_reach))
      saved = int(within_reach[best])
      if saved > start and 2 * saved >= len(prompt):
        # Keep what the other free slots hold: the oldest goes first.
        slot = next(x for x in self._free if parts[x] == parts[best])
        source, start = best, saved
      self._free.remove(slot)
      self._of[session] = slot
    self._held[slot, : len(prompt)] = prompt
    self._length[slot] = len(prompt)
    return PrefillPlan(slot, source, start, prompt[start:])

  def _shared(self, prompt: np.ndarray) -> np.ndarray:
    """[N] length of the prefix that each slot shares with `prompt`."""
    n = len(prompt)
    length = np.where(self._outlived, 0, self._length)
    same = self._held[:, :n] == prompt
    same &= np.arange(n) < length[:, None]
    return np.where(same.all(1), n, np.argmin(same, 1))


def waves(reads: Sequence[PrefillPlan]) -> list[list[PrefillPlan]]:
  """Reads in the order in which their sources exist, each wave at once.

  Args:
    reads: Planned one after the other, at most one a slot.

  Returns:
    Waves; within one, all copies come before anything is read.
  """
  found: list[list[PrefillPlan]] = []
  wave_of: dict[int, int] = {}
  for read in reads:
    wave = wave_of.get(read.source, -1) + 1
    wave_of[read.slot] = wave
    if wave == len(found):
      found.append([])
    found[wave].append(read)
  return found
