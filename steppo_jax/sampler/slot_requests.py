"""What is asked of each slot, as arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from steppo_jax import types

# Most integers in a request's key; the shape must not vary.
KEY_LENGTH = 7
# Most tokens that end a response; the shape must not vary either.
MAX_STOPS = 16


class SlotRequests(NamedTuple):
  """What was asked of each slot. On the host, its arrays are written in place.

  Attributes:
    length: [N] int32 tokens in the prompt.
    limit: [N] int32 tokens that the response may have.
    temperature: [N] float32; 0 takes the most likely token.
    numbers: [N, 1 + KEY_LENGTH] uint32, the length of the key and the key.
    stop_ids: [N, MAX_STOPS] int32 tokens that end the response, -1 behind them.
    top_p: [N] float32; see `types.Request`. Read by engines that cut.
  """

  length: Any
  limit: Any
  temperature: Any
  numbers: Any
  stop_ids: Any
  top_p: Any

  @classmethod
  def none(cls, num_slots: int) -> "SlotRequests":
    """Nothing asked of any slot."""
    zeros = np.zeros(num_slots, np.int32)
    return cls(
      zeros,
      zeros.copy(),
      np.zeros(num_slots, np.float32),
      np.zeros((num_slots, 1 + KEY_LENGTH), np.uint32),
      np.full((num_slots, MAX_STOPS), -1, np.int32),
      np.ones(num_slots, np.float32),
    )

  def take(
    self, slot: int, request: types.Request, stop_ids: Sequence[int]
  ) -> None:
    """Writes one request down, and what ends its response."""
    key = request.key
    self.length[slot] = len(request.prompt_ids)
    self.limit[slot] = request.max_new_tokens
    self.temperature[slot] = request.temperature
    self.top_p[slot] = request.top_p
    self.numbers[slot] = 0
    self.numbers[slot, : 1 + len(key)] = (len(key), *key)
    self.stop_ids[slot] = -1
    self.stop_ids[slot, : len(stop_ids)] = stop_ids
