"""Errors that say what a device had no memory for, and what to change."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def explained(doing: str, *changes: str) -> Iterator[None]:
  """Turns XLA's refusal of memory into an error that a user can act on.

  What XLA says names neither the part of the run nor any option; it stands at
  the end of the error. Programs run while Python goes on, so that the refusal
  may come where their results are first read: that belongs inside, too.

  Args:
    doing: What was being done, as in "out of memory while ...".
    changes: What takes less memory, options by their names; the best first.

  Raises:
    RuntimeError: a device, or the host, had no memory for it.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise RuntimeError(
      f"out of memory while {doing}: {', or '.join(changes)}; JAX says: {error}"
    ) from error
