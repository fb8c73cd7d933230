"""The compiled programs of the sampler, and the cache that they share.

A run has eight of them at most, whatever its context and number of slots: one
for each size of prefill, one that copies prefixes, and one to three that
sample. Each is compiled when it is first needed, or all side by side in threads
by `Programs.warm_up`.
"""

import collections
import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from steppo_jax.models import transformer
from steppo_jax.sampler import decode, slots
from steppo_jax.sampler.slot_requests import SlotRequests

# Most programs in all, with up to six sizes of prefill.
MOST = 8
# A context with room for prompts of a thousand tokens has prefill of this size,
# whatever the options say.
LONG = 512
# Tokens that are read at once: more of them use a matrix unit better, fewer are
# padded less.
READ_AT_ONCE = {"cpu": 256}
READ_AT_ONCE_ELSEWHERE = 2048
# Turns of prefill cost as much as so many tokens, beside those that they read.
CALL = 8


class Functions(NamedTuple):
  """What the sampler runs, as pure functions of arrays; see `decode`.

  Attributes:
    prefill: (params, cache, tokens, start, length, slots, used, rows=) ->
      cache.
    copy: (cache, source, target, length, used) -> cache.
    sample: (cache, turns, params, slots, asked, fresh, stop_at, max_steps) ->
      (cache, turns, steps, tokens).
  """

  prefill: Callable
  copy: Callable
  sample: Callable


def functions(model: transformer.ModelConfig, *, seed: int) -> Functions:
  """The sampler's functions; arguments are those of `Programs`."""

  def sample(cache, turns, params, *rest):
    return decode.decode(model, params, cache, turns, *rest, seed=seed)

  def prefill(params, cache, *rest, rows):
    return decode.prefill(model, params, cache, *rest, rows=rows)

  return Functions(prefill, decode.copy, sample)


def jitted(made: Functions) -> Functions:
  """The same, to be compiled; cache and responses are donated."""
  return Functions(
    jax.jit(made.prefill, donate_argnums=1, static_argnames="rows"),
    jax.jit(made.copy, donate_argnums=0),
    jax.jit(made.sample, donate_argnums=(0, 1)),
  )


class Shared:
  """Compiled programs for all engines of one kind in this process.

  A notebook, a comparison and a second panel make engine after engine of one
  model; each would spend seconds to minutes on programs that are there.

  Attributes:
    compiled: Number of programs that have been compiled.
  """

  def __init__(self, model: transformer.ModelConfig, seed: int):
    self.compiled = 0
    self._functions = jitted(functions(model, seed=seed))
    self._found: dict[Any, concurrent.futures.Future] = {}
    self._lock = threading.Lock()

  def get(self, name: str, key: Any, args: tuple, **static: int) -> Callable:
    """The program `name` for arguments of these shapes, compiled if need be.

    Args:
      name: A field of `Functions`.
      key: Tells apart arguments of different shapes.
      args: Arguments, or their shapes and types.
      **static: What the function is compiled for besides.
    """
    with self._lock:
      ours = (name, key) not in self._found
      future = self._found.setdefault((name, key), concurrent.futures.Future())
      self.compiled += ours
    if ours:
      try:
        function = getattr(self._functions, name)
        future.set_result(function.lower(*args, **static).compile())
      except BaseException as error:
        with self._lock:
          del self._found[name, key]
          self.compiled -= 1
        future.set_exception(error)
    return future.result()


@functools.lru_cache(maxsize=4)
def _shared(
  model: transformer.ModelConfig, num_slots: int, seed: int
) -> Shared:
  del num_slots  # So that few programs are kept.
  return Shared(model, seed)


class Programs:
  """Copy, prefill and decode, each compiled once.

  What was compiled for an engine serves a later one of the same model, shapes
  and seed in the same process.

  Attributes:
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
    self.turns = decode.no_turns(num_slots, max_new_tokens)
    self._params: Any = None
    self._num_slots = num_slots
    self._cache = decode.empty_cache(model, num_slots, context)
    self._prefill_lengths, self._row_sizes = shapes(
      num_slots, context, tuple(prefill_lengths)
    )
    at_once = READ_AT_ONCE.get(jax.default_backend(), READ_AT_ONCE_ELSEWHERE)
    self._read_rows = {
      size: min(num_slots, max(-(-num_slots // 8), at_once // size))
      for size in self._prefill_lengths
    }
    self._shared = _shared(model, num_slots, seed)
    self._compiled_before = self._shared.compiled

  @property
  def params(self) -> Any:
    """Decoder parameters by layer, set by the owner."""
    return self._params

  @params.setter
  def params(self, params: Any) -> None:
    self._params = params
    shape = lambda x: (np.shape(x), np.dtype(x.dtype).name)
    held = (params, self._cache, self.turns)
    self._key = tuple(map(shape, jax.tree.leaves(held)))

  @property
  def compiles(self) -> int:
    """Programs compiled since these were made, for them or for their like."""
    return self._shared.compiled - self._compiled_before

  def warm_up(self) -> None:
    """Compiles every program that requests can need, side by side."""
    calls = [self._copy_call([])]
    calls += [self._prefill_call([], size) for size in self._prefill_lengths]
    nothing = SlotRequests.none(self._num_slots)
    fresh = np.zeros(self._num_slots, bool)
    calls += [
      self._sample_call([], rows, nothing, fresh, 0, 0)
      for rows in self._row_sizes
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
      list(threads.map(lambda call: self._program(*call), calls))

  def read(self, wave: Sequence[slots.PrefillPlan]) -> None:
    """Copies shared prefixes and reads prompts, grouped to waste little."""
    copies = [read for read in wave if read.source is not None]
    if copies:
      self._cache = self._run(self._copy_call(copies))
    pending = []
    for read in wave:
      sizes = cut(len(read.ids), self._prefill_lengths)
      pending.append((read.slot, read.start, read.ids, sizes))
    while pending:
      runs: dict[int, list] = collections.defaultdict(list)
      rest = []
      for slot, start, ids, (size, *more) in pending:
        runs[size].append((slot, start, ids[:size]))
        if more:
          rest.append((slot, start + size, ids[size:], more))
      for size, group in sorted(runs.items()):
        # Rows of like length are read at once, and no further than they reach.
        group.sort(key=lambda run: run[1] + len(run[2]))
        self._cache = self._run(self._prefill_call(group, size))
      pending = rest

  def sample(
    self,
    live: Sequence[int],
    asked: SlotRequests,
    fresh: np.ndarray,
    *,
    stop_at: int,
    max_steps: int,
  ) -> tuple[int, int]:
    """Samples in some slots; see `decode.decode`.

    Args:
      live: The slots whose responses are under way.
      asked: What is asked of all slots.
      fresh: [N] bool, slots that start a response.
      stop_at: Number of live slots at which to stop.
      max_steps: Tokens after which to stop.

    Returns:
      Tokens read side by side, and their number over all slots.
    """
    rows = next(rows for rows in self._row_sizes if rows >= len(live))
    call = self._sample_call(live, rows, asked, fresh, stop_at, max_steps)
    self._cache, self.turns, steps, tokens = self._run(call)
    return int(steps), int(tokens)

  def _program(self, name, size, args, static) -> Callable:
    return self._shared.get(name, (size, self._key), args, **static)

  def _run(self, call):
    return self._program(*call)(*call[2])

  def _sample_call(self, live, rows, asked, fresh, stop_at, max_steps):
    into = np.full(rows, self._num_slots, np.int32)
    into[: len(live)] = live
    args = (
      self._cache, self.turns, self._params, into, asked, fresh,
      np.int32(stop_at), np.int32(max_steps),
    )  # fmt: skip
    return "sample", rows, args, {}

  def _copy_call(self, batch):
    source, target, length = np.zeros((3, self._num_slots), np.int32)
    for row, read in enumerate(batch):
      source[row], target[row] = read.source, read.slot
      length[row] = read.start
    args = self._cache, source, target, length, np.int32(len(batch))
    return "copy", 0, args, {}

  def _prefill_call(self, batch, size):
    at_once = self._read_rows[size]
    rows = -(-self._num_slots // at_once) * at_once
    tokens = np.zeros((rows, size), np.int32)
    start, length = np.zeros((2, rows), np.int32)
    into = np.full(rows, self._num_slots, np.int32)
    for row, (slot, begin, ids) in enumerate(batch):
      tokens[row, : len(ids)] = ids
      start[row], length[row], into[row] = begin, len(ids), slot
    args = (
      self._params, self._cache, tokens, start, length, into,
      np.int32(len(batch)),
    )  # fmt: skip
    return "prefill", size, args, {"rows": at_once}


def shapes(
  num_slots: int, context: int, prefill_lengths: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """What programs there are: sizes of prefill and of sampling, ascending.

  Arguments are those of `Programs`. There is one more program, for copies.
  """
  sizes = list(prefill_lengths)
  # A size is not needed if a smaller one holds all there is.
  while len(sizes) > 1 and sizes[-2] >= context:
    sizes.pop()
  if sizes[-1] < LONG <= context // 2 and len(sizes) < MOST - 2:
    sizes.append(LONG)
  # All slots, an eighth of them, a third.
  rows = num_slots, -(-num_slots // 8), -(-num_slots // 3)
  return tuple(sizes), tuple(sorted(set(rows[: max(1, MOST - 1 - len(sizes))])))


@functools.lru_cache(maxsize=4096)
def cut(length: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
  """Sizes, largest first, that hold a run of tokens at the least cost.

  Args:
    length: Tokens, at least one.
    sizes: What there is, ascending. A run costs its size and `CALL` more.
  """
  largest = sizes[-1]
  whole = max(0, length // largest - 1)
  rest, found = length - whole * largest, [(0, ())]
  for n in range(1, rest + 1):
    ways = (
      (size + CALL + found[max(0, n - size)][0], size, n) for size in sizes
    )
    cost, size, n = min(ways)
    found.append((cost, (size, *found[max(0, n - size)][1])))
  return (largest,) * whole + tuple(sorted(found[rest][1], reverse=True))
