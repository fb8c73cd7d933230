"""The compiled programs of the sampler, the cache they share, their shapes."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from steppo_jax import types
from steppo_jax.models import transformer
from steppo_jax.sampler import decode, draw, slots

# Most integers in a request's key; the shape must not vary.
KEY_LENGTH = 7
# Most tokens that end a response; the shape must not vary either.
MAX_STOPS = 16


class SlotRequests(NamedTuple):
  """What was asked of each slot, as arrays that are written in place.

  Attributes:
    length: [N] int32 tokens in the prompt.
    limit: [N] int32 tokens that the response may have.
    temperature: [N] float32.
    numbers: [N, 1 + KEY_LENGTH] uint32, the length of the key and the key.
    stop_ids: [N, MAX_STOPS] int32 tokens that end the response, -1 behind them.
  """

  length: np.ndarray
  limit: np.ndarray
  temperature: np.ndarray
  numbers: np.ndarray
  stop_ids: np.ndarray

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
    )

  def take(
    self, slot: int, request: types.Request, stop_ids: Sequence[int]
  ) -> None:
    """Writes one request down, and what ends its response."""
    key = request.key
    self.length[slot] = len(request.prompt_ids)
    self.limit[slot] = request.max_new_tokens
    self.temperature[slot] = request.temperature
    self.numbers[slot] = 0
    self.numbers[slot, : 1 + len(key)] = (len(key), *key)
    self.stop_ids[slot] = -1
    self.stop_ids[slot, : len(stop_ids)] = stop_ids


class Functions(NamedTuple):
  """What the sampler runs, as pure functions of arrays; see `decode`.

  Attributes:
    prefill: (params, cache, tokens, start, length, slots, context=) -> cache.
    copy: (cache, source, target, context=) -> cache.
    sample: (cache, turns, params, slots, asked, fresh, stop_at, max_steps,
      context=) -> (cache, turns, steps, tokens).
  """

  prefill: Callable
  copy: Callable
  sample: Callable


def functions(
  model: transformer.ModelConfig,
  *,
  num_slots: int,
  seed: int,
) -> Functions:
  """The sampler's functions; arguments are those of `Programs`."""

  def sample(cache, turns, params, slots, asked, fresh, stop_at, max_steps,
             *, context):  # fmt: skip
    if slots.shape[0] == num_slots:
      slots = None
    part = decode.take(cache, turns, slots, context=context)
    *part, steps, tokens = decode.decode(
      model,
      params,
      *part,
      fresh,
      asked.length,
      asked.limit,
      asked.temperature,
      draw.request_keys(seed, asked.numbers),
      asked.stop_ids,
      stop_at,
      max_steps,
    )
    return *decode.put(cache, turns, slots, *part), steps, tokens

  def prefill(params, cache, *rest, context):
    return decode.prefill(model, params, cache, *rest, context=context)

  def copy(cache, source, target, *, context):
    return decode.copy(cache, source, target, context=context)

  return Functions(prefill, copy, sample)


def jitted(made: Functions) -> Functions:
  """The same, compiled once per shape; cache and responses are donated."""
  jit = functools.partial(jax.jit, static_argnames="context")
  return Functions(
    jit(made.prefill, donate_argnums=1),
    jit(made.copy, donate_argnums=0),
    jit(made.sample, donate_argnums=(0, 1)),
  )


@functools.lru_cache(maxsize=4)
def _shared(
  model: transformer.ModelConfig,
  num_slots: int,
  seed: int,
) -> tuple[Functions, list[str]]:
  """Compiled functions for all engines of one kind in this process.

  A notebook, a comparison and a second panel make engine after engine of one
  model; each would spend seconds to minutes on programs that are there.

  Returns:
    The functions, and a list that grows by a name whenever one is traced.
  """
  traced: list[str] = []

  def noted(function: Callable) -> Callable:
    @functools.wraps(function)
    def run(*args, **options):
      traced.append(function.__name__)  # runs while tracing only
      return function(*args, **options)

    return run

  made = functions(model, num_slots=num_slots, seed=seed)
  return jitted(Functions(*map(noted, made))), traced


class Programs:
  """Copy, prefill and decode, each compiled once per shape.

  What was compiled for an engine serves a later one of the same model, slots
  and seed in the same process.

  Attributes:
    params: Decoder parameters by layer, set by the owner.
    turns: Responses under way.
  """

  def __init__(
    self,
    model: transformer.ModelConfig,
    *,
    num_slots: int,
    context: int,
    max_new_tokens: int,
    prefill_lengths: Sequence[int],
    seed: int,
  ):
    """Allocates the cache; nothing is compiled yet.

    Args:
      model: Sizes of the decoder.
      num_slots: N.
      context: C, longest trajectory in tokens.
      max_new_tokens: M, longest response in tokens.
      prefill_lengths: Sizes into which runs of prompt tokens are cut,
        ascending.
      seed: Root of all keys.
    """
    self.params: Any = None
    self.turns = decode.no_turns(num_slots, max_new_tokens)
    self._num_slots = num_slots
    self._cache = decode.empty_cache(model, num_slots, context)
    # Attention over the cache is most of decoding; of reading it is little
    # unless the cache is long.
    self._contexts = _context_sizes(context, 2)
    self._read_contexts = _context_sizes(context, 4, up_to=512)
    self._prefill_lengths = prefill_lengths
    # Slots that are worked on at once: all of them, down to an eighth.
    self._row_sizes = sorted({max(1, num_slots // k) for k in (8, 4, 2, 1)})

    (self._prefill, self._copy, self._sample), self._traced = _shared(
      model, num_slots, seed
    )
    self._traced_before = len(self._traced)

  @property
  def compiles(self) -> int:
    """Programs compiled since these were made, for them or for their like."""
    return len(self._traced) - self._traced_before

  def warm_up(self) -> None:
    """Compiles every program that requests can need."""
    nothing = SlotRequests.none(self._num_slots)
    fresh = np.zeros(self._num_slots, bool)
    for rows in self._row_sizes:
      for context in self._read_contexts:
        self._run_copy([], rows, context)
        for size in self._prefill_lengths:
          if size <= context:
            self._run_prefill([], rows, size, context)
      for context in self._contexts:
        self._run_sample([], rows, nothing, fresh, context, 0, 0)

  def read(self, wave: Sequence[slots.PrefillPlan]) -> None:
    """Copies shared prefixes and reads prompts, grouped to waste little."""
    copies = [read for read in wave if read.source is not None]
    for batch, rows in self._batches(copies):
      longest = max(read.start for read in batch)
      self._run_copy(batch, rows, _pick(self._read_contexts, longest))
    pending = [(read.slot, read.start, read.ids) for read in wave]
    largest = self._prefill_lengths[-1]
    while pending:
      runs: dict[int, list] = collections.defaultdict(list)
      rest = []
      for slot, start, ids in pending:
        now = ids[:largest]
        if len(ids) > largest:
          rest.append((slot, start + largest, ids[largest:]))
        size = next(s for s in self._prefill_lengths if s >= len(now))
        runs[size].append((slot, start, now))
      for size, group in sorted(runs.items()):
        end = max(start + len(ids) for _, start, ids in group)
        context = _pick(self._read_contexts, max(end, size))
        for batch, rows in self._batches(group):
          self._run_prefill(batch, rows, size, context)
      pending = rest

  def sample(
    self,
    live: Sequence[int],
    asked: SlotRequests,
    fresh: np.ndarray,
    *,
    longest: int,
    stop_at: int,
    max_steps: int,
  ) -> tuple[int, int]:
    """Samples in some slots; see `decode.decode`.

    Args:
      live: The slots whose responses are under way.
      asked: Sampling parameters of all slots.
      fresh: [N] bool, slots that start a response.
      longest: Cache positions that will be in use at the end.
      stop_at: Number of live slots at which to stop.
      max_steps: Tokens after which to stop.

    Returns:
      Tokens read side by side, and their number over all slots.
    """
    rows = _pick(self._row_sizes, len(live))
    context = _pick(self._contexts, longest)
    return self._run_sample(
      live, rows, asked, fresh, context, stop_at, max_steps
    )

  def _batches(self, items):
    """Items in batches, each with the number of rows of its program."""
    while items:
      count = min(len(items), self._num_slots)
      rows = _pick(self._row_sizes, count)
      full = max((r for r in self._row_sizes if r < count), default=0)
      # Two calls that pad less beat one.
      if full and full + _pick(self._row_sizes, count - full) < rows:
        rows = full
      yield items[:rows], rows
      items = items[rows:]

  def _run_sample(
    self, live, rows, asked, fresh, context, stop_at, max_steps
  ) -> tuple[int, int]:
    into = np.arange(rows, dtype=np.int32)
    if rows < self._num_slots:
      into = np.full(rows, self._num_slots, np.int32)
      into[: len(live)] = live
      at = np.minimum(into, self._num_slots - 1)
      asked, fresh = SlotRequests(*(x[at] for x in asked)), fresh[at]
      fresh[len(live) :] = False
    self._cache, self.turns, steps, tokens = self._sample(
      self._cache, self.turns, self.params, into, asked, fresh,
      np.int32(stop_at), np.int32(max_steps), context=context,
    )  # fmt: skip
    return int(steps), int(tokens)

  def _run_copy(self, batch, rows, context) -> None:
    source = np.zeros(rows, np.int32)
    target = np.full(rows, self._num_slots, np.int32)
    for row, read in enumerate(batch):
      source[row], target[row] = read.source, read.slot
    self._cache = self._copy(self._cache, source, target, context=context)

  def _run_prefill(self, batch, rows, size, context) -> None:
    tokens = np.zeros((rows, size), np.int32)
    start, length = np.zeros((2, rows), np.int32)
    into = np.full(rows, self._num_slots, np.int32)
    for row, (slot, begin, ids) in enumerate(batch):
      tokens[row, : len(ids)] = ids
      start[row], length[row], into[row] = begin, len(ids), slot
    self._cache = self._prefill(
      self.params, self._cache, tokens, start, length, into, context=context
    )


def _context_sizes(context: int, factor: int, up_to: int = 0) -> list[int]:
  """Cache lengths, ascending: the context, divided by 2 while above `up_to`.

  From there on it is divided by `factor`, and 64 is the least.
  """
  sizes = [context]
  while True:
    by = 2 if sizes[-1] > up_to else factor
    if sizes[-1] % by or sizes[-1] // by < 64:
      return sizes[::-1]
    sizes.append(sizes[-1] // by)


def _pick(sizes: Sequence[int], needed: int) -> int:
  """The smallest size that is enough."""
  return next(size for size in sizes if size >= needed)
