"""The local engine: slots that keep their cache from turn to turn."""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from steppo_jax import types
from steppo_jax.models import transformer
from steppo_jax.sampler import decode

# Most integers in a request's key; the shape must not vary.
_KEY_LENGTH = 7


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """Shapes of the sampler; each combination compiles once, at warm-up.

  Attributes:
    num_slots: Trajectories that are sampled side by side.
    prefill_lengths: Sizes into which runs of new prompt tokens are cut,
      ascending; longer prompts are read in several runs.
  """

  num_slots: int = 128
  prefill_lengths: tuple[int, ...] = (8, 16, 32, 64)


class SlotEngine:
  """Samples with one key-value cache per slot; implements `types.Engine`.

  On each turn only the tokens that the slot does not hold are read: the
  longest common prefix of the prompt and the slot's contents is kept.

  Attributes:
    num_slots: Most requests that `generate` takes at once.
    compiles: Programs compiled so far; constant after `warm_up`.
    prefill_tokens: Prompt tokens read so far.
    prompt_tokens: Prompt tokens asked for so far.
  """

  def __init__(
    self,
    model: transformer.ModelConfig,
    config: SamplerConfig,
    *,
    context: int,
    max_new_tokens: int,
    end_of_turn_id: int,
    seed: int,
  ):
    """Allocates the slots; nothing is compiled yet.

    Args:
      model: Sizes of the decoder.
      config: Shapes.
      context: Longest trajectory in tokens.
      max_new_tokens: Longest response in tokens, end-of-turn included.
      end_of_turn_id: The token that ends a response.
      seed: Root of all keys.
    """
    self.num_slots = config.num_slots
    self.compiles = 0
    self.prefill_tokens = 0
    self.prompt_tokens = 0
    self._config = config
    self._seed = seed
    self._end_of_turn = end_of_turn_id
    self._params: Any = None
    self._version = 0
    self._cache = decode.empty_cache(model, config.num_slots, context)
    self._held = [np.zeros(0, np.int32) for _ in range(config.num_slots)]
    self._slot_of: dict[str, int] = {}
    self._free = collections.deque(range(config.num_slots))
    self._max_new_tokens = max_new_tokens
    self._contexts = _context_sizes(context)
    # Few rows for new trajectories, all of them for the usual turn.
    self._row_sizes = sorted({max(1, config.num_slots // 8), config.num_slots})

    def prefill(params, cache, tokens, start, length, slots, *, context):
      self.compiles += 1  # runs while tracing only
      return decode.prefill(
        model, params, cache, tokens, start, length, slots, context=context
      )

    def sample(params, cache, length, limit, heat, numbers, *, context):
      self.compiles += 1
      keys = decode.request_keys(self._seed, numbers)
      return decode.decode(
        model,
        params,
        cache,
        length,
        limit,
        heat,
        keys,
        end_of_turn_id=end_of_turn_id,
        max_new_tokens=max_new_tokens,
        context=context,
      )

    jit = functools.partial(
      jax.jit, static_argnames="context", donate_argnums=1
    )
    self._prefill, self._sample = jit(prefill), jit(sample)

  def set_params(self, params: Any, version: int) -> None:
    """Takes new weights; caches made by other weights are dropped."""
    self._params, self._version = params, version
    self._held = [np.zeros(0, np.int32) for _ in self._held]

  def warm_up(self) -> None:
    """Compiles every program that `generate` can need."""
    if self._params is None:
      raise RuntimeError("set_params must be called before warm_up")
    for context in self._contexts:
      for rows in self._row_sizes:
        for size in self._config.prefill_lengths:
          if size <= context:
            self._run_prefill([], rows, size, context)
      self._run_sample([], {}, context)

  def release(self, session: str) -> None:
    """Frees the slot of a trajectory that has ended."""
    slot = self._slot_of.pop(session, None)
    if slot is not None:
      self._free.append(slot)

  def generate(self, requests: Sequence[types.Request]) -> list[types.Response]:
    """Answers all requests, at most `num_slots`, in their order.

    Raises:
      ValueError: too many requests, two of one session, an empty prompt, or
        a prompt and response that do not fit the context.
    """
    self._check(requests)
    slots = [self._slot(r.session) for r in requests]
    pending = []
    for request, slot in zip(requests, slots, strict=True):
      prompt = request.prompt_ids
      # The last token is always read anew: its output starts the response.
      keep = min(_common(self._held[slot], prompt), len(prompt) - 1)
      pending.append((slot, keep, prompt[keep:]))
      self.prefill_tokens += len(prompt) - keep
      self.prompt_tokens += len(prompt)
    self._read(pending)
    longest = max((len(r.prompt_ids) + r.max_new_tokens for r in requests),
                  default=1)  # fmt: skip
    of_slot = dict(zip(slots, requests, strict=True))
    ids, logps, count = self._run_sample(
      slots, of_slot, self._pick_context(longest)
    )
    responses = []
    for request, slot in zip(requests, slots, strict=True):
      n = int(count[slot])
      response = ids[slot, :n].copy()
      held = [request.prompt_ids, response[:-1]]
      self._held[slot] = np.concatenate(held).astype(np.int32)
      stopped = n > 0 and response[-1] == self._end_of_turn
      responses.append(
        types.Response(
          response,
          logps[slot, :n].copy(),
          "stop" if stopped else "length",
          self._version,
        )
      )
    return responses

  def _check(self, requests):
    if self._params is None:
      raise RuntimeError("set_params must be called before generate")
    if len(requests) > self.num_slots:
      raise ValueError(
        f"{len(requests)} requests for sampler.num_slots={self.num_slots}"
      )
    if len({r.session for r in requests}) < len(requests):
      raise ValueError("two requests of one session in one batch")
    for r in requests:
      if len(r.key) > _KEY_LENGTH:
        raise ValueError(
          f"session {r.session}: a key of {len(r.key)} integers, at most "
          f"{_KEY_LENGTH} are taken"
        )
      if len(r.prompt_ids) == 0:
        raise ValueError(f"session {r.session}: empty prompt")
      if r.max_new_tokens > self._max_new_tokens:
        raise ValueError(
          f"session {r.session}: {r.max_new_tokens} new tokens asked for, "
          f"the engine's limit is {self._max_new_tokens}"
        )
      if len(r.prompt_ids) + r.max_new_tokens > self._contexts[-1]:
        raise ValueError(
          f"session {r.session}: prompt of {len(r.prompt_ids)} and response "
          f"of {r.max_new_tokens} tokens exceed the context of "
          f"{self._contexts[-1]}"
        )

  def _slot(self, session: str) -> int:
    if session not in self._slot_of:
      if not self._free:
        raise RuntimeError(
          f"no free slot for session {session}: release ended sessions"
        )
      self._slot_of[session] = self._free.popleft()
    return self._slot_of[session]

  def _pick_context(self, needed: int) -> int:
    return next(size for size in self._contexts if size >= needed)

  def _read(self, pending) -> None:
    """Prefills (slot, start, ids) runs, grouped by size to waste little."""
    largest = self._config.prefill_lengths[-1]
    while pending:
      runs: dict[int, list] = collections.defaultdict(list)
      rest = []
      for slot, start, ids in pending:
        now = ids[:largest]
        if len(ids) > largest:
          rest.append((slot, start + largest, ids[largest:]))
        size = next(s for s in self._config.prefill_lengths if s >= len(now))
        runs[size].append((slot, start, now))
      for size, group in sorted(runs.items()):
        end = max(start + len(ids) for _, start, ids in group)
        context = self._pick_context(max(end, size))
        few, many = self._row_sizes[0], self._row_sizes[-1]
        while group:
          rows = few if len(group) <= few else many
          batch, group = group[:rows], group[rows:]
          self._run_prefill(batch, rows, size, context)
      pending = rest

  def _run_prefill(self, batch, rows, size, context) -> None:
    tokens = np.zeros((rows, size), np.int32)
    start, length = np.zeros((2, rows), np.int32)
    slots = np.full(rows, self.num_slots, np.int32)
    for row, (slot, begin, ids) in enumerate(batch):
      tokens[row, : len(ids)] = ids
      start[row], length[row], slots[row] = begin, len(ids), slot
    self._cache = self._prefill(
      self._params, self._cache, tokens, start, length, slots, context=context
    )

  def _run_sample(self, slots, of_slot, context):
    n = self.num_slots
    length, limit = np.zeros((2, n), np.int32)
    heat = np.zeros(n, np.float32)
    numbers = np.zeros((n, 1 + _KEY_LENGTH), np.uint32)
    for slot in slots:
      request = of_slot[slot]
      length[slot] = len(request.prompt_ids)
      limit[slot] = request.max_new_tokens
      heat[slot] = request.temperature
      numbers[slot, : 1 + len(request.key)] = (len(request.key), *request.key)
    self._cache, ids, logps, count = self._sample(
      self._params, self._cache, length, limit, heat, numbers, context=context
    )
    return jax.device_get((ids, logps, count))


def _context_sizes(context: int) -> list[int]:
  """Cache lengths to attend over: the context and its halves down to 64."""
  sizes = [context]
  while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= 64:
    sizes.append(sizes[-1] // 2)
  return sizes[::-1]


def _common(held: np.ndarray, prompt: np.ndarray) -> int:
  """Length of the longest common prefix."""
  n = min(len(held), len(prompt))
  differs = np.flatnonzero(held[:n] != prompt[:n])
  return int(differs[0]) if len(differs) else n
