"""Tells an event log of the time that JAX spends on compiling."""

import contextlib
from collections.abc import Iterator

import jax

from steppo_jax.storage import events

# Tracing, lowering and compiling, or reading a compiled program from the cache.
_PREFIX, _SUFFIX = "/jax/core/compile/", "_duration"

_logs: list[events.Log] = []


def _listen(name: str, seconds: float, **_) -> None:
  if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
    for log in _logs:
      log.ended(events.COMPILE, seconds)


# JAX has no way to take one listener back; this one is there once and for all.
jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def counts_compiles(log: events.Log) -> Iterator[None]:
  """While this lasts, compilation in the log's spans is counted as such."""
  _logs.append(log)
  try:
    yield
  finally:
    _logs.remove(log)
