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
from jax.sharding import NamedSharding, PartitionSpec

from steppo_jax.models import out_of_memory, transformer
from steppo_jax.sampler import cache as cache_lib
from steppo_jax.sampler import (
  cache_attention,
  decode,
  hand_over,
  sizes,
  slots,
  split,
)
from steppo_jax.sampler.slot_requests import SlotRequests

# What a sampler that is too large for its devices may do.
_LESS = (
  "lower sampler.num_slots",
  "raise sampler.tensor, so that devices share a copy of the weights",
  "lower rollout.max_tokens",
)


class Functions(NamedTuple):
  """What the sampler runs, as pure functions of arrays; see `decode`.

  Numbers that may differ from device to device come and go as arrays [S], one
  for each of the devices that the slots are split over.

  Attributes:
    prefill: (params, cache, tokens, start, length, slots, used) -> cache.
    copy: (cache, source, target, length, used) -> cache.
    sample: (cache, turns, params, slots, asked, fresh, stop_at, max_steps) ->
      (cache, turns, steps, tokens).
  """

  prefill: Callable
  copy: Callable
  sample: Callable


def functions(
  model: transformer.ModelConfig,
  *,
  seed: int,
  cuts: bool = False,
  shared_by: int = 1,
) -> Functions:
  """The sampler's functions on one device; see `Programs`.

  Args:
    model: Sizes of the whole decoder.
    seed: See `Programs`.
    cuts: See `Programs`.
    shared_by: Devices that share the model; this is one of them.
  """

  def sample(cache, turns, params, slots, asked, fresh, stop_at, max_steps):
    *state, steps, tokens = decode.decode(
      model, params, cache, turns, slots, asked, fresh, stop_at[0], max_steps,
      seed=seed, cuts=cuts, parts=shared_by,
    )  # fmt: skip
    return *state, steps[None], tokens[None]

  def prefill(params, cache, tokens, start, length, slots, used):
    return decode.prefill(
      model, params, cache, tokens, start, length, slots, used[0],
      parts=shared_by,
    )  # fmt: skip

  def copy(cache, source, target, length, used):
    return cache_lib.copy(cache, source, target, length, used[0])

  return Functions(prefill, copy, sample)


def jitted(
  made: Functions,
  mesh: jax.sharding.Mesh | None,
  params: Any,
) -> Functions:
  """The same, to be compiled; cache and responses are donated.

  Args:
    made: See `functions`.
    mesh: Its axis "data" splits the slots, and each part of them is worked on
      alone: numbers of slots are those of the part. Its axis "tensor", if it
      has one, splits the model. None for one device.
    params: Where the parameters' parts lie; see `split.specs`.
  """
  slot, whole = PartitionSpec("data"), PartitionSpec()
  cache = cache_lib.specs(split.size(mesh))
  takes = Functions(
    (params, cache, *[slot] * 5),
    (cache, *[slot] * 4),
    (cache, slot, params, slot, slot, slot, slot, whole),
  )
  gives = Functions(cache, cache, (cache, slot, slot, slot))
  donated = Functions(1, 0, (0, 1))

  def one(function, takes, gives, donated):
    if mesh is None:
      return jax.jit(function, donate_argnums=donated)
    on = lambda specs: jax.tree.map(
      lambda spec: NamedSharding(mesh, spec), specs
    )
    function = jax.shard_map(
      function, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False
    )
    return jax.jit(
      function, donate_argnums=donated, in_shardings=on(takes),
      out_shardings=on(gives),
    )  # fmt: skip

  return Functions(*map(one, made, takes, gives, donated))


class Shared:
  """Compiled programs for all engines of one kind in this process.

  A notebook, a comparison and a second panel make engine after engine of one
  model; each would spend seconds to minutes on programs that are there.

  Attributes:
    compiled: Number of programs that have been compiled.
  """

  def __init__(
    self,
    model: transformer.ModelConfig,
    seed: int,
    mesh: jax.sharding.Mesh | None,
    cuts: bool,
  ):
    self.compiled = 0
    shared_by = split.size(mesh)
    made = functions(model, seed=seed, cuts=cuts, shared_by=shared_by)
    self._functions = jitted(made, mesh, split.specs(model, shared_by))
    self._found: dict[Any, concurrent.futures.Future] = {}
    self._lock = threading.Lock()

  def get(self, name: str, key: Any, args: tuple) -> Callable:
    """The program `name` for arguments of these shapes, compiled if need be.

    Args:
      name: A field of `Functions`.
      key: Tells apart arguments of different shapes.
      args: Arguments, or their shapes and types.
    """
    with self._lock:
      ours = (name, key) not in self._found
      future = self._found.setdefault((name, key), concurrent.futures.Future())
      self.compiled += ours
    if ours:
      try:
        function = getattr(self._functions, name)
        future.set_result(function.lower(*args).compile())
      except BaseException as error:
        with self._lock:
          del self._found[name, key]
          self.compiled -= 1
        future.set_exception(error)
    return future.result()


@functools.lru_cache(maxsize=4)
def _shared(
  model: transformer.ModelConfig,
  num_slots: int,
  seed: int,
  mesh: jax.sharding.Mesh | None,
  cuts: bool,
) -> Shared:
  del num_slots  # So that few programs are kept.
  return Shared(model, seed, mesh, cuts)


class Programs:
  """Copy, prefill and decode, each compiled once.

  What was compiled for an engine serves a later one of the same model, shapes
  and seed in the same process.

  Attributes:
    params: Decoder parameters by layer, of `hand_over.for_sampler` and `mesh`;
      set by the owner.
    turns: Responses under way.
    mesh: The devices; see `split.mesh_of`.
    parts: S, the parts of equal length that the slots are split into.
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
    devices: Sequence[jax.Device],
    shared_by: int = 1,
    cuts: bool = False,
    attention: str = "auto",
  ):
    """Allocates the cache; no program is compiled yet.

    Args:
      model: Sizes of the decoder.
      num_slots: N.
      context: C, longest trajectory in tokens.
      max_new_tokens: M, longest response in tokens.
      prefill_lengths: Sizes into which runs of prompt tokens are cut,
        ascending.
      seed: Root of all keys.
      devices: Those that may be used; see `split.mesh_of`.
      shared_by: Devices that share the model; see `split`.
      cuts: Whether `top_p` of requests is read.
      attention: `SamplerConfig.attention`.

    Raises:
      ValueError: the model or the devices cannot be split so, or there is no
        such attention for the model.
      RuntimeError: the devices have no memory for the cache.
    """
    split.check(model, shared_by)
    split.warn_of_idle(num_slots, len(devices), shared_by, devices[0].platform)
    self.mesh = mesh = split.mesh_of(num_slots, devices, shared_by)
    self.parts = 1 if mesh is None else mesh.shape["data"]
    self._params: Any = None
    self._num_slots = num_slots
    # Slots are numbered within their part.
    self._each = num_slots // self.parts

    whole = split.whole_cache(model, shared_by)
    paged = cache_attention.is_paged(attention, split.part(model, shared_by))

    def start():
      turns = decode.no_turns(num_slots, max_new_tokens)
      return cache_lib.empty(whole, num_slots, context, paged=paged), turns

    with out_of_memory.explained(
      f"making the sampler's cache of {num_slots} slots of {context} tokens on "
      f"{1 if mesh is None else mesh.size} devices", *_LESS,
    ):  # fmt: skip
      if mesh is not None:
        at = lambda spec: NamedSharding(mesh, spec)
        specs = cache_lib.specs(shared_by), PartitionSpec("data")
        start = jax.jit(start, out_shardings=jax.tree.map(at, specs))
      self._cache, self.turns = jax.block_until_ready(start())
    self._prefill_lengths, self._row_sizes = sizes.shapes(
      self._each, context, tuple(prefill_lengths)
    )
    self._shared = _shared(model, num_slots, seed, mesh, cuts)
    self._compiled_before = self._shared.compiled

  @property
  def params(self) -> Any:
    return self._params

  @params.setter
  def params(self, params: Any) -> None:
    self._params = params
    shape = lambda x: (np.shape(x), np.dtype(x.dtype).name)
    held = (params, self._cache, self.turns)
    self._key = tuple(map(shape, jax.tree.leaves(held)))

  @property
  def held(self) -> dict[str, Any]:
    """What is on the devices, by what it is."""
    return {"weights": self._params, "cache": (self._cache, self.turns)}

  def drop(self) -> None:
    """Gives the memory of weights, cache and responses back."""
    self._cache = self.turns = None
    self.params = None

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
      self._sample_call(self._by_part([]), rows, nothing, fresh, 0, 0)
      for rows in self._row_sizes
    ]
    with (
      out_of_memory.explained("compiling the sampler", *_LESS),
      concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
      list(threads.map(lambda call: self._program(*call), calls))

  def read(self, wave: Sequence[slots.PrefillPlan]) -> None:
    """Copies shared prefixes and reads prompts, grouped to waste little."""
    copies = [read for read in wave if read.source is not None]
    if copies:
      self._cache = self._run(self._copy_call(copies))
    pending = []
    for read in wave:
      lengths = sizes.cut(len(read.ids), self._prefill_lengths)
      pending.append((read.slot, read.start, read.ids, lengths))
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
    refill: int,
    max_steps: int,
  ) -> tuple[int, int]:
    """Samples in some slots; see `decode.decode`.

    Args:
      live: The slots whose responses are under way.
      asked: What is asked of all slots.
      fresh: [N] bool, slots that start a response.
      refill: Number of responses after whose end to stop. Each part of the
        slots stops by itself, after its share of them, unless devices share
        the model: all parts then stop together.
      max_steps: Tokens after which to stop.

    Returns:
      Tokens read side by side, and their number over all slots.
    """
    by_part = self._by_part(live)
    most = max(map(len, by_part))
    rows = next(rows for rows in self._row_sizes if rows >= most)
    call = self._sample_call(by_part, rows, asked, fresh, refill, max_steps)
    with self._explained("sampling"):
      self._cache, self.turns, steps, tokens = self._run(call)
      steps, tokens = jax.device_get((steps, tokens))
    return int(steps.max()), int(tokens.sum())

  def _by_part(self, items, slot=lambda item: item) -> list[list]:
    """Items by the part that their slots belong to."""
    divided = [[] for _ in range(self.parts)]
    for item in items:
      divided[slot(item) // self._each].append(item)
    return divided

  def _program(self, name, size, args) -> Callable:
    return self._shared.get(name, (size, self._key), args)

  def _run(self, call):
    with self._explained(f"sampling ({call[0]})"):
      return self._program(*call)(*call[2])

  def _explained(self, doing: str):
    # Weights are read here first, which need not have been there yet.
    arrived = functools.partial(hand_over.arrived, self._params)
    return out_of_memory.explained(doing, *_LESS, before=arrived)

  def _sample_call(self, by_part, rows, asked, fresh, refill, max_steps):
    into = np.full((self.parts, rows), self._each, np.int32)
    share = -(-refill // self.parts)
    stop_at = np.zeros(self.parts, np.int32)
    for part, live in enumerate(by_part):
      into[part, : len(live)] = np.array(live, np.int32) % self._each
      stop_at[part] = max(0, len(live) - share)
    args = (
      self._cache, self.turns, self._params, into.reshape(-1), asked, fresh,
      stop_at, np.int32(max_steps),
    )  # fmt: skip
    return "sample", rows, args

  def _copy_call(self, batch):
    shape = 3, self.parts, self._each
    source, target, length = np.zeros(shape, np.int32)
    used = np.zeros(self.parts, np.int32)
    for part, copies in enumerate(self._by_part(batch, lambda x: x.slot)):
      used[part] = len(copies)
      for row, read in enumerate(copies):
        source[part, row] = read.source % self._each
        target[part, row] = read.slot % self._each
        length[part, row] = read.start
    flat = lambda x: x.reshape(-1)
    return "copy", 0, (
      self._cache, flat(source), flat(target), flat(length), used
    )  # fmt: skip

  def _prefill_call(self, batch, size):
    rows = sizes.read_rows(self._each, size, jax.default_backend())
    groups = -(-self._each // rows)
    shape = self.parts, groups * rows
    tokens = np.zeros((*shape, size), np.int32)
    start, length = np.zeros((2, *shape), np.int32)
    into = np.full(shape, self._each, np.int32)
    used = np.zeros(self.parts, np.int32)
    for part, runs in enumerate(self._by_part(batch, lambda x: x[0])):
      used[part] = -(-len(runs) // rows)
      for row, (slot, begin, ids) in enumerate(runs):
        tokens[part, row, : len(ids)] = ids
        start[part, row], length[part, row] = begin, len(ids)
        into[part, row] = slot % self._each
    cut = lambda x: x.reshape(self.parts * groups, rows, *x.shape[2:])
    if split.size(self.mesh) > 1:
      # Devices speak in every group, so that all read equally many.
      used[:] = used.max()
    return "prefill", size, (
      self._params, self._cache, cut(tokens), cut(start), cut(length),
      cut(into), used,
    )  # fmt: skip
