"""Host records and protocols. This module imports no JAX."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

StopReason = Literal["stop", "length"]

# Rewards are stored as float32, in which a larger one would be infinite.
LARGEST_REWARD = float(np.finfo(np.float32).max)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
  """Length of the longest common prefix of two arrays of token ids."""
  size = min(len(a), len(b))
  differs = np.flatnonzero(a[:size] != b[:size])
  return int(differs[0]) if differs.size else size


@dataclasses.dataclass(frozen=True)
class Task:
  """One problem that an environment can be reset to.

  Attributes:
    uid: Unique name; the same task has the same uid on every host.
    env: Name of the environment that understands `payload`.
    family: Kind of task, the unit of the per-family tables.
    payload: JSON-able description of the problem.
    golden_steps: Length of a shortest solution in steps, None if not known.
  """

  uid: str
  env: str
  family: str
  payload: Mapping[str, Any]
  golden_steps: int | None = None


def task_to_json(task: Task) -> dict[str, Any]:
  """A task as JSON-able data."""
  return {
    "uid": task.uid,
    "env": task.env,
    "family": task.family,
    "payload": dict(task.payload),
    "golden_steps": task.golden_steps,
  }


def task_from_json(data: Mapping[str, Any]) -> Task:
  """The task that `task_to_json` wrote.

  Raises:
    ValueError: the data are not of a task.
  """
  try:
    return Task(**data)
  except TypeError as error:
    raise ValueError(f"not a task: {error}") from error


class TimeStep(NamedTuple):
  """What an environment answers.

  Attributes:
    observation: Text for the agent.
    reward: Reward of the transition that led here, 0.0 after a reset.
    terminated: The episode ended by the rules of the task.
    truncated: The environment cut the episode short.
    info: Facts for metrics, never shown to the agent: `won` (bool), `invalid`
      (bool, the action was refused), `anchor` (str, text that identifies the
      state for group methods), `scores` (numbers by name, how good the state
      is apart from the reward). `commands` (list of str, what can be answered)
      is shown where the prompt's layout has a place for it.
  """

  observation: str
  reward: float
  terminated: bool
  truncated: bool
  info: Mapping[str, Any]


class Turn(NamedTuple):
  """What was seen at a step and what was answered.

  Attributes:
    observation: Text for the agent.
    commands: What can be answered, where that is known.
    response_ids: [R] int32 answer, None where it is still to come.
  """

  observation: str
  commands: Sequence[str] = ()
  response_ids: np.ndarray | None = None


class Env(Protocol):
  """A text environment. One instance is used by one thread at a time."""

  def reset(self, task: Task, seed: int) -> TimeStep: ...

  def step(self, text: str) -> TimeStep: ...

  def close(self) -> None: ...


class Tokenizer(Protocol):
  """Text to ids and back. Control tokens are reached by id only.

  Attributes:
    vocab_size: Number of ids that can be decoded.
    num_ids: Number of ids that stand for something; those behind are rows that
      only the model has, and must not be sampled.
    pad_id: Fills unused slots.
    bos_id: Starts a prompt.
    end_of_turn_id: Ends a turn that is written.
    stop_ids: All ids that end a response that is sampled, `end_of_turn_id`
      first.
    digest: Names vocabulary and rules.
  """

  vocab_size: int
  num_ids: int
  pad_id: int
  bos_id: int
  end_of_turn_id: int
  stop_ids: tuple[int, ...]
  digest: str

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 ids; control tokens spelt in `text` are plain text."""

  def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...


@dataclasses.dataclass(frozen=True)
class Request:
  """One step to sample.

  Attributes:
    session: Names the trajectory; its cache slot is reused from turn to turn.
    prompt_ids: [P] int32, the whole prompt of the step.
    key: Integers folded into the sampler's seed, such as (update, group,
      sample, turn). Equal keys and prompts give equal samples.
    max_new_tokens: Limit of the response in tokens, end-of-turn included.
    temperature: Of the softmax that is the policy, log-probs included; 0 takes
      the most likely token and gives log-probs at temperature 1.
    stop_ids: Tokens that end the response, beside the engine's own
      end-of-turn token; such as those of `Tokenizer.stop_ids`.
    top_p: Share of the mass that is sampled from, the likeliest tokens first,
      with log-probs of what is left. 1 for the whole softmax, which is all that
      is trained on; see `SlotEngine`.
  """

  session: str
  prompt_ids: np.ndarray
  key: tuple[int, ...]
  max_new_tokens: int
  temperature: float
  stop_ids: tuple[int, ...] = ()
  top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Response:
  """What the policy wrote.

  Attributes:
    response_ids: [R] int32; the token that ended it is the last of them.
    behaviour_logp: [R] float32 log-probabilities of those tokens under the
      policy that sampled them.
    stop_reason: "stop" after a token that ends responses, "length" at the
      limit.
    policy_version: Number of updates behind the weights that sampled it.
  """

  response_ids: np.ndarray
  behaviour_logp: np.ndarray
  stop_reason: StopReason
  policy_version: int


@dataclasses.dataclass
class EngineCounters:
  """What an engine has done since it was made; the numbers only grow.

  Attributes:
    prompt_tokens: Prompt tokens asked for.
    prefill_tokens: Prompt tokens read.
    copied_tokens: Prompt tokens taken over from another slot.
    decode_steps: Tokens read side by side while sampling.
    decode_tokens: Tokens read while sampling, over all slots.
  """

  prompt_tokens: int = 0
  prefill_tokens: int = 0
  copied_tokens: int = 0
  decode_steps: int = 0
  decode_tokens: int = 0


@runtime_checkable
class Engine(Protocol):
  """Samples responses for requests that come and go.

  A run gives it weights (`set_params`), compiles once (`warm_up`), and plays
  between two changes of the weights. A run whose rollouts go on meanwhile has
  them changed by `prepare` and `swap`. The loop that plays episodes needs only
  `num_slots`, `submit`, `poll` and `release`.

  Attributes:
    num_slots: Most responses under way at once.
    counters: What has been done so far; the same object throughout.
  """

  num_slots: int
  counters: EngineCounters

  @property
  def compiles(self) -> int:
    """Programs compiled since it was made; constant after `warm_up`.

    0 where one like it was warmed up in this process before.
    """

  @property
  def version(self) -> int | None:
    """Updates behind the weights it holds; None before the first weights."""

  def set_params(self, params: Any, version: int) -> None:
    """Takes new weights, which every later response is sampled with.

    Args:
      params: The policy's parameters, as a tree of arrays on any devices;
        adapters among them are merged. They are copied.
      version: Number of updates behind them.

    Raises:
      RuntimeError: responses are under way.
    """

  def prepare(self, params: Any) -> Any:
    """Weights in the form that it samples with, for `swap`.

    Unlike the rest it may be called by another thread, and while responses are
    under way.

    Args:
      params: As for `set_params`; they are copied.
    """

  def swap(self, prepared: Any, version: int) -> None:
    """As `set_params`, of weights that are prepared; it takes no time.

    Raises:
      RuntimeError: responses are under way.
    """

  def warm_up(self) -> None:
    """Compiles every program that requests can need.

    Raises:
      RuntimeError: there are no weights yet.
    """

  def submit(self, requests: Sequence[Request]) -> None:
    """Takes requests in, at most `num_slots` under way at once."""

  def poll(self) -> list[tuple[Request, Response]]:
    """Works on what was submitted; returns what has been answered since.

    May return nothing while responses are under way; calling it again goes on.
    """

  def release(self, session: str) -> None:
    """Frees the slot of a trajectory that has ended."""


@dataclasses.dataclass(frozen=True)
class Step:
  """One transition of the step-level MDP: prompt, response, reward.

  Attributes:
    prompt_ids: [P] int32, the state: everything the policy read.
    response_ids: [R] int32, the action. May be empty.
    response_mask: [R] bool, True where the policy sampled the token.
    behaviour_logp: [R] float32, log-probabilities under the sampler.
    reward: Reward of this transition.
    trajectory_uid: The episode.
    step_index: 0, 1, 2, ... within the episode.
    group_uid: The task; episodes of one group are compared with each other.
    policy_version: Updates behind the weights that sampled the response.
    terminated: True at the last step of an episode that ended by its rules.
    truncated: True at the last step of an episode cut by a limit.
    stop_reason: Why sampling of the response ended.
    anchor_obs: Text that identifies the state, for group methods; without one
      the step has no state in common with others.
    metadata: Facts for metrics and viewing, such as `invalid`.
    reasoning_mask: [R] bool, True where a token is part of a thought, its marks
      included. None where nobody told, as in records of older versions.
  """

  prompt_ids: np.ndarray
  response_ids: np.ndarray
  response_mask: np.ndarray
  behaviour_logp: np.ndarray
  reward: float
  trajectory_uid: str
  step_index: int
  group_uid: str
  policy_version: int
  terminated: bool = False
  truncated: bool = False
  stop_reason: StopReason = "stop"
  anchor_obs: str = ""
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reasoning_mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """The steps of one episode, in order.

  Attributes:
    uid: Unique name of the episode.
    task: What was to be done.
    steps: At least one step unless `error` is set.
    final_prompt_ids: [P] int32, the prompt that the next step would have read
      had a truncated episode gone on; its value is the bootstrap. None when
      the episode terminated.
    success: Whether the task was solved.
    error: What broke the episode, None if nothing did. Such an episode is
      counted and never trained on.
    retried: What broke earlier attempts at the episode, each played again from
      its start with the same key.
    scores: Numbers by which the environment judged the state that the episode
      ended in, such as `f1`.
  """

  uid: str
  task: Task
  steps: tuple[Step, ...]
  final_prompt_ids: np.ndarray | None
  success: bool
  error: str | None = None
  retried: tuple[str, ...] = ()
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def total_reward(self) -> float:
    return float(sum(step.reward for step in self.steps))
