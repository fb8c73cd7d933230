"""Errors that say what a device had no memory for, and what to change."""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax


class OutOfMemory(RuntimeError):
  """A device, or the host, had no memory for a part of a run.

  Args:
    doing: What was being done, as in "out of memory while ...".
    changes: What takes less memory, options by their names; the best first.
    cause: What JAX said.
    within: The part of the run, as in "in ..."; "" where `doing` says it.
    held: What a device held then, in words; "" where that is not known.

  Attributes:
    whole: Whether the part or what was held is told already.
  """

  def __init__(
    self,
    doing: str,
    changes: tuple[str, ...],
    cause: BaseException,
    within: str = "",
    held: str = "",
  ):
    self.doing, self.changes, self.cause = doing, changes, cause
    self.whole = bool(within or held)
    where = f", in {within}" if within else ""
    beside = f" ({held})" if held else ""
    help_ = f": {', or '.join(changes)}" if changes else ""
    super().__init__(
      f"out of memory while {doing}{where}{beside}{help_}; JAX says: {cause}"
    )


@contextlib.contextmanager
def explained(
  doing: str, *changes: str, before: Callable[[], Any] | None = None
) -> Iterator[None]:
  """Turns XLA's refusal of memory into an error that a user can act on.

  What XLA says names neither the part of the run nor any option; it stands at
  the end of the error. Programs run while Python goes on, so that the refusal
  may come where their results are first read: that belongs inside, too.

  Args:
    doing: What was being done, as in "out of memory while ...".
    changes: What takes less memory, options by their names; the best first.
    before: Awaits what was begun earlier and is read here. If the memory was
      refused to that, it raises its own error, which stands for this one.

  Raises:
    OutOfMemory: a device, or the host, had no memory for it.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not _is_refusal(error):
      raise
    if before is not None:
      before()
    raise OutOfMemory(doing, changes, error) from error


@contextlib.contextmanager
def part(
  name: str, held: Callable[[], Mapping[str, Any]], *changes: str
) -> Iterator[None]:
  """Adds to a refusal which part of a run it was, and what the run held.

  It stands around `explained`, whose error it completes, and catches what is
  refused outside of any.

  Args:
    name: The part, as in "in ..."; "" where what is explained inside says it.
    held: Gives trees of arrays by what they are; called after a refusal.
    changes: What takes less memory in this part, beside what is said inside.

  Raises:
    OutOfMemory: a device, or the host, had no memory for it.
  """
  try:
    yield
  except OutOfMemory as error:
    if error.whole:
      raise
    raise OutOfMemory(
      error.doing, (*error.changes, *changes), error.cause, name,
      _described(held()),
    ) from error.cause  # fmt: skip
  except jax.errors.JaxRuntimeError as error:
    if not _is_refusal(error):
      raise
    raise OutOfMemory(
      name or "working", changes, error, held=_described(held())
    ) from error


def _is_refusal(error: BaseException) -> bool:
  return "RESOURCE_EXHAUSTED" in str(error)


def on_devices(tree: Any) -> dict[jax.Device, int]:
  """Bytes of a tree of arrays on each device of this process.

  Arrays that a program was given for its own count as if they were there.
  """
  found = collections.Counter()
  for x in jax.tree.leaves(tree):
    if isinstance(x, jax.Array):
      here = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      found.update(dict.fromkeys(x.sharding.addressable_devices, here))
  return dict(found)


def _described(held: Mapping[str, Any]) -> str:
  """What the fullest device holds, in words."""
  by_name = {name: on_devices(tree) for name, tree in held.items()}
  total = sum(map(collections.Counter, by_name.values()), collections.Counter())
  if not total:
    return ""
  device = max(total, key=total.get)
  named = ", ".join(
    f"{name} {_size(sizes[device])}"
    for name, sizes in by_name.items()
    if sizes.get(device)
  )
  stats = device.memory_stats() or {}
  limit = stats.get("bytes_limit")
  of = f", of {_size(limit)} that it has" if limit else ""
  return f"a device held {named}{of}"


def _size(count: int) -> str:
  for power, unit in ((30, "GiB"), (20, "MiB")):
    if count >= 2**power:
      return f"{count / 2**power:.2f} {unit}"
  return f"{count / 2**10:.1f} KiB"
