"""Options of rollouts: the limits of an episode, and groups played anew."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Limits of an episode.

  Attributes:
    max_steps: Steps after which an episode is truncated.
    max_tokens: Length in tokens that prompt and response may reach together;
      an episode that cannot take another step is truncated.
    max_new_tokens: Longest response in tokens.
    temperature: Softmax temperature; 0 is greedy.
    env_threads: Threads that step environments while the sampler goes on; 0
      steps them between two calls of the sampler, in an order that is the same
      in every run. Worth it for environments that wait for something.
    max_seconds: Seconds since its first observation after which an episode is
      truncated, once the step under way has its answer; None for no limit. The
      learner then waits no longer for an episode whose environment is slow.
      Which steps there are depends on the clock: such a run does not repeat
      another to the bit, but trains on what its journal holds as any does. A
      step that never ends is ended by `env.limits` alone.
    max_invalid: Refused commands or calls in a row after which an episode is
      lost, in training and evaluation: it terminates, so that no value is
      bootstrapped behind it. Rewards so far stay, and there is no further
      penalty. A policy that repeats what was refused then takes the time of a
      few steps and not of `max_steps`. None for no limit.
    max_live: Most episodes under way at once; None for as many as the sampler
      has slots.
    retries: Times that an episode whose environment failed is played again
      before it counts as an error: from its start, with the same key, so that
      the same episode comes of it. Without them an environment that fails now
      and then loses long episodes more often than short ones.
    staleness: Most updates between the weights that sample a token and the
      update that trains it. 0 plays and learns in turns. From 1 on rollouts go
      on while the learner works (asynchronous training, `training.ahead`):
      worth it where environments are slow, or devices idle otherwise. No
      episode is thrown away, whatever the number.
    stall_seconds: Seconds that learner, rollouts, environments, servers or
      agents may wait for each other before the log and `events.jsonl` say who
      waits for whom, and since when; again after as many. It ends nothing. None
      for never.
    source: Who plays: "env" the environments of `env.name`; "agents" programs
      that the run starts, and "service" agents that come by themselves, both
      through an endpoint (`AgentConfig`).
    engine: Who samples: "internal" this process, "http" the servers of
      `engines.addresses` (docs/engines.md).
  """

  max_steps: int = 15
  max_tokens: int = 256
  max_new_tokens: int = 12
  temperature: float = 1.0
  env_threads: int = 0
  max_seconds: float | None = None
  max_invalid: int | None = None
  max_live: int | None = None
  retries: int = 0
  staleness: int = 0
  stall_seconds: float | None = 60.0
  source: Literal["env", "agents", "service"] = "env"
  engine: Literal["internal", "http"] = "internal"

  def __post_init__(self):
    for name in ("max_live", "max_invalid"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"rollout.{name}={value} must be at least 1")
    for name in ("max_seconds", "stall_seconds"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"rollout.{name}={value} must be above 0, or None")
    if self.retries < 0:
      raise ValueError(f"rollout.retries={self.retries} must be at least 0")
    if self.staleness < 0:
      raise ValueError(f"rollout.staleness={self.staleness} must be at least 0")
    if self.max_invalid is not None and self.source != "env":
      raise ValueError(
        "rollout.max_invalid counts what environments refuse; agents end their "
        f"episodes themselves (rollout.source={self.source})"
      )


@dataclasses.dataclass(frozen=True)
class AgentConfig:
  """Agents that are programs of their own; see docs/agents.md.

  Attributes:
    command: What plays one episode, such as "python my_agent.py".
    entry: A Python callable that does, such as package.module:function, in
      place of a command; it is called in a process of its own.
    processes: Most of them at once.
    seconds: After which one is killed, and a session that is not used ended.
    memory_mb: Address space of one; None for no limit.
    host: Where the gateway listens. One that is reached from elsewhere needs
      the variable STEPPO_API_KEY, which clients send to begin a session.
    port: Of the gateway; 0 takes a free one.
    begin_by_header: With rollout.source=service: a call with an unknown
      X-Session-ID, and the server's key, begins a session of that name.
  """

  command: str = ""
  entry: str = ""
  processes: int = 8
  seconds: float = 600.0
  memory_mb: int | None = None
  host: str = "127.0.0.1"
  port: int = 0
  begin_by_header: bool = False

  def __post_init__(self):
    for name in ("processes", "seconds", "memory_mb"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"agents.{name}={value} must be above 0")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Servers that sample, with `rollout.engine=http`; see docs/engines.md.

  Attributes:
    addresses: Of the servers, such as http://HOST:8000. A run that goes on may
      have other ones.
    form: "steppo" for `serve policy --accept-weights`; "vllm" or "sglang",
      which take adapters alone.
    seconds: That an answer, or an upload without progress, may take.
    adapters: Folder that vLLM's or SGLang's servers see under the same name;
      adapters are written there.
    model: What these call the base; None for the first that they serve.
    slots: Responses that each of these samples at once; our own server tells.
  """

  addresses: tuple[str, ...] = ()
  form: Literal["steppo", "vllm", "sglang"] = "steppo"
  seconds: float = 600.0
  adapters: str | None = None
  model: str | None = None
  slots: int = 64

  def __post_init__(self):
    for name in ("seconds", "slots"):
      if not getattr(self, name) > 0:
        raise ValueError(
          f"engines.{name}={getattr(self, name)} must be above 0"
        )


@dataclasses.dataclass(frozen=True)
class DynamicSampling:
  """DAPO's dynamic sampling: other tasks where a group teaches nothing.

  A group whose episodes are all paid alike has no advantage. With this on, an
  update plays further rounds of fresh tasks until it has `tasks_per_update`
  groups that differ; see `training.dynamic_sampling`.

  Attributes:
    max_rounds: Rounds that an update plays at most, the first one included;
      None plays one and leaves rewards alone.
    min_groups: Groups that differ which an update must have in the end, or the
      run ends with an error; None fills the batch up with groups of equal
      rewards.
  """

  max_rounds: int | None = None
  min_groups: int | None = None

  def __post_init__(self):
    for name in ("max_rounds", "min_groups"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(
          f"dynamic_sampling.{name}={value} must be at least 1, or None"
        )
    if self.min_groups is not None and self.max_rounds is None:
      raise ValueError(
        f"dynamic_sampling.min_groups={self.min_groups} is read with dynamic "
        "sampling alone: set dynamic_sampling.max_rounds too"
      )
