"""Limits of the worker processes that environments live in."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class WorkerLimits:
  """What a worker process may take.

  Attributes:
    start_s: Seconds for the process to start and make its environment.
    reset_s: Seconds for a reset.
    step_s: Seconds for a step.
    close_s: Seconds for closing; after it the process is killed.
    lease_s: Seconds that one episode may keep a worker; another episode that
      waits then gets a worker in its place.
    memory_mb: Address space of the process in MiB; None for no limit.
    backoff_s: Seconds before a worker is started again after one that never
      answered a reset; doubles with every such worker in a row.
    backoff_max_s: Most seconds to wait so.
    start_attempts: Workers that never answered, in a row, after which episodes
      fail at once instead of waiting.
  """

  start_s: float = 60.0
  reset_s: float = 60.0
  step_s: float = 30.0
  close_s: float = 5.0
  lease_s: float = 1800.0
  memory_mb: int | None = None
  backoff_s: float = 0.25
  backoff_max_s: float = 10.0
  start_attempts: int = 4

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and not value > 0:
        raise ValueError(f"env.limits.{field.name}={value} must be positive")
