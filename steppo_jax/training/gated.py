"""The engine of a run whose episodes agents play through a gateway."""

import contextlib
from collections.abc import Iterator
from typing import Any

from steppo_jax import types
from steppo_jax.processes import waits
from steppo_jax.serving import scheduler


class GatedEngine:
  """The run's side of an engine that a gateway samples with."""

  def __init__(self, engine: types.Engine, gate: scheduler.Scheduler):
    self._engine, self._gate = engine, gate
    self.num_slots = engine.num_slots
    self.counters = engine.counters

  @property
  def compiles(self) -> int:
    """See `types.Engine`."""
    return self._engine.compiles

  @property
  def version(self) -> int | None:
    """See `types.Engine`."""
    return self._engine.version

  @property
  def held(self) -> dict[str, Any]:
    """What it has on its devices, by what it is."""
    return getattr(self._engine, "held", {})

  def set_params(self, params: Any, version: int) -> None:
    """Gives the engine weights when no answer is under way."""
    with self._rest():
      self._engine.set_params(params, version)

  def prepare(self, params: Any) -> Any:
    """See `types.Engine`."""
    return self._engine.prepare(params)

  def swap(self, prepared: Any, version: int) -> None:
    """As `set_params`, of weights that are prepared."""
    with self._rest():
      self._engine.swap(prepared, version)

  def warm_up(self) -> None:
    """Compiles every program that requests can need."""
    with self._rest():
      self._engine.warm_up()

  @contextlib.contextmanager
  def _rest(self) -> Iterator[None]:
    """Holds the gateway's sampler, which it has to wait for."""
    what = lambda: f"{self._gate.load['running']} answers under way"
    with contextlib.ExitStack() as stack:
      with waits.on("weights", "gateway", what):
        stack.enter_context(self._gate.held())
      yield
