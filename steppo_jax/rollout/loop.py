"""The host-side environment loop: many episodes, whole batches of steps."""

import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import NamedTuple, Protocol

import numpy as np

from steppo_jax import types
from steppo_jax.processes import waits
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import calls as calls_lib
from steppo_jax.rollout.options import RolloutConfig


class Episode(NamedTuple):
  """An episode to be run.

  Attributes:
    uid: Unique name of the episode.
    task: What to reset to.
    seed: Given to the environment's reset.
    key: Integers that the sampler's keys derive from; the turn is appended.
  """

  uid: str
  task: types.Task
  seed: int
  key: tuple[int, ...]


class Feed(Protocol):
  """Where a rollout that goes on while others learn has its episodes from.

  All methods are called by the thread that plays. Any may raise, which breaks
  the rollout off.
  """

  def take(self) -> Episode | None:
    """The next episode; None if none may begin now."""

  def ended(self) -> bool:
    """Whether `take` will give no episode any more."""

  def change_waits(self) -> bool:
    """Whether the engine is to get other weights: until it has, no response
    begins, so that each is sampled by one policy."""

  def change(self) -> None:
    """Gives the engine its weights; no response is under way."""

  def news(self) -> futures.Future:
    """Done once `take` may give an episode, weights wait, or all is to end."""


class _Listed:
  """A feed of episodes that are all there at the start."""

  def __init__(self, episodes: Iterable[Episode]):
    self._rest = collections.deque(episodes)
    self._news = futures.Future()

  def take(self) -> Episode | None:
    return self._rest.popleft() if self._rest else None

  def ended(self) -> bool:
    return not self._rest

  def change_waits(self) -> bool:
    return False

  def change(self) -> None:
    raise AssertionError("no weights wait")

  def news(self) -> futures.Future:
    return self._news


@dataclasses.dataclass
class _Live:
  """An episode under way."""

  episode: Episode
  env: types.Env
  prompt_ids: np.ndarray
  turns: list[types.Turn]
  anchor: str
  steps: list[types.Step] = dataclasses.field(default_factory=list)
  began: float = dataclasses.field(default_factory=time.monotonic)


def run(
  engine: types.Engine,
  make_env: Callable[[], types.Env],
  episodes: Iterable[Episode],
  prompt: prompt_base.Prompt,
  config: RolloutConfig,
  *,
  on_finish: Callable[[types.Trajectory], None] | None = None,
  waiting: Callable[[], contextlib.AbstractContextManager] = (
    contextlib.nullcontext
  ),
) -> list[types.Trajectory]:
  """Runs episodes side by side, as many as the engine has slots.

  A finished episode's slot is refilled at once, and an environment that is
  slow holds no other. Every episode comes back exactly once: an environment
  that raises ends its own episode with `error` and no other, once its retries
  are used up.

  Args:
    engine: Samples the responses.
    make_env: Makes one environment; environments are reused.
    episodes: What to run.
    prompt: Builds prompts from observations.
    config: Limits.
    on_finish: Called with each trajectory when it ends.
    waiting: Makes a context around every time that nothing can be done but wait
      for environments.

  Returns:
    Trajectories in the order of `episodes`.
  """
  episodes = list(episodes)
  done: dict[str, types.Trajectory] = {}

  def keep(trajectory: types.Trajectory) -> None:
    done[trajectory.uid] = trajectory
    if on_finish is not None:
      on_finish(trajectory)

  feed = _Listed(episodes)
  run_from(engine, make_env, feed, prompt, config, keep, waiting=waiting)
  return [done[episode.uid] for episode in episodes]


def run_from(
  engine: types.Engine,
  make_env: Callable[[], types.Env],
  feed: Feed,
  prompt: prompt_base.Prompt,
  config: RolloutConfig,
  on_finish: Callable[[types.Trajectory], None],
  *,
  waiting: Callable[[], contextlib.AbstractContextManager] = (
    contextlib.nullcontext
  ),
) -> None:
  """Runs the episodes of a feed until it has ended; otherwise as `run`.

  Args:
    engine: Samples the responses; see `Feed.change` for its weights.
    make_env: See `run`.
    feed: Gives the episodes.
    prompt: See `run`.
    config: See `run`.
    on_finish: Called with each trajectory when it ends.
    waiting: See `run`.
  """
  _Rollout(engine, make_env, prompt, config, on_finish, waiting).run(feed)


class _Rollout:
  """What `run_from` keeps while it runs."""

  def __init__(self, engine, make_env, prompt, config, on_finish, waiting):
    self._engine = engine
    self._make_env = make_env
    self._prompt = prompt
    self._config = config
    self._on_finish = on_finish
    self._waiting = waiting
    self._live: dict[int, _Live | None] = {}
    self._retried: dict[int, tuple[str, ...]] = {}
    self._again: collections.deque[tuple[int, Episode]] = collections.deque()
    self._numbers = itertools.count()
    self._number_of: dict[str, int] = {}
    self._idle: list[types.Env] = []
    self._most = min(engine.num_slots, config.max_live or engine.num_slots)

  def run(self, feed: Feed) -> None:
    engine, live = self._engine, self._live
    rest = self._prompt, self._config
    requests, under_way = [], 0
    try:
      with calls_lib.Calls(self._config.env_threads, self._waiting) as calls:
        while True:
          # Also where all slots are with environments that take their time.
          if feed.change_waits() and not under_way:
            feed.change()
          self._begin(feed, calls)
          if not live:
            if feed.ended():
              return
            what = "weights that let another episode begin"
            with (
              self._waiting(),
              waits.on(waits.ROLLOUTS, waits.LEARNER, what),
            ):
              futures.wait([feed.news()])
            continue
          # All are with their environments: nothing to do but wait.
          idle = len(calls) == len(live)
          for index, found in calls.finished(wait=idle, news=feed.news()):
            if isinstance(found, _Live):
              live[index] = found
              requests.append(self._request(found))
            elif again := self._end(index, found):
              self._again.appendleft((index, again))
          if not feed.change_waits():
            engine.submit(requests)
            under_way += len(requests)
            requests = []
          what = f"{under_way} responses"
          with waits.on(waits.ROLLOUTS, waits.SAMPLER, what):
            answered = engine.poll()
          for request, response in answered:
            under_way -= 1
            index = self._number_of[request.session]
            calls.start(
              index, request.session, _advance, live[index], response, *rest
            )
    finally:
      # A rollout that is broken off leaves episodes under way.
      for env in [*self._idle, *(s.env for s in live.values() if s)]:
        _close(env)

  def _begin(self, feed: Feed, calls: calls_lib.Calls) -> None:
    """Resets environments for as many episodes as there are and have room."""
    while len(self._live) < self._most:
      if self._again:
        index, episode = self._again.popleft()
      elif (episode := feed.take()) is not None:
        index = self._number_of[episode.uid] = next(self._numbers)
      else:
        return
      self._live[index] = None
      env = self._idle.pop() if self._idle else None
      rest = self._prompt, self._config
      calls.start(
        index, episode.uid, _start, episode, env, self._make_env, *rest
      )

  def _request(self, state: _Live) -> types.Request:
    return types.Request(
      state.episode.uid,
      state.prompt_ids,
      (*state.episode.key, len(state.steps)),
      self._config.max_new_tokens,
      self._config.temperature,
      self._prompt.stop_ids,
    )

  def _end(self, index, found) -> Episode | None:
    """Takes in how an attempt ended; the episode if it is played again."""
    ended = found.trajectory
    self._engine.release(ended.uid)
    state = self._live.pop(index)
    if state is not None and ended.error is None:
      self._idle.append(state.env)
    elif state is not None:
      _close(state.env)
    retried = self._retried.get(index, ())
    if found.again is not None and len(retried) < self._config.retries:
      self._retried[index] = (*retried, ended.error)
      return found.again
    ended = dataclasses.replace(ended, retried=retried) if retried else ended
    self._retried.pop(index, None)
    del self._number_of[ended.uid]
    self._on_finish(ended)
    return None


class _Ended(NamedTuple):
  """An attempt at an episode that has ended.

  Attributes:
    trajectory: What came of it.
    again: The episode, where another attempt may end otherwise.
  """

  trajectory: types.Trajectory
  again: Episode | None = None


def _close(env: types.Env) -> None:
  """Closes an environment; one that fails to close has nothing left to lose."""
  with contextlib.suppress(Exception):
    env.close()


def _start(episode, env, make_env, prompt, config):
  """Resets an environment; returns the live episode or its failure."""
  try:
    env = env or make_env()
    first = env.reset(episode.task, episode.seed)
    turn = _turn(first)
    prompt_ids = prompt.first(turn)
  except Exception as error:
    if env is not None:
      _close(env)
    return _failed(episode, (), error)
  needed = len(prompt_ids) + config.max_new_tokens
  if needed > config.max_tokens:
    _close(env)
    reason = (
      f"first prompt of {len(prompt_ids)} tokens leaves no room for a "
      f"response: raise rollout.max_tokens={config.max_tokens}"
    )
    return _Ended(
      types.Trajectory(episode.uid, episode.task, (), None, False, reason)
    )
  return _Live(episode, env, prompt_ids, [turn], first.info.get("anchor", ""))


def _turn(out: types.TimeStep) -> types.Turn:
  return types.Turn(out.observation, out.info.get("commands", ()))


def _failed(episode, steps, error) -> _Ended:
  # An exception of a worker process is counted by its own name. Others have a
  # `cause` too, such as Py4J's, which is no text.
  cause = getattr(error, "cause", None)
  cause = cause if isinstance(cause, str) else type(error).__name__
  broken = types.Trajectory(
    episode.uid, episode.task, tuple(steps), None, False, f"{cause}: {error}"
  )
  return _Ended(broken, episode)


def _told_by(prompt, response_ids) -> tuple[bool, np.ndarray | None]:
  """Whether a response is refused, and which of its tokens are thoughts.

  A refusal counts whatever the environment makes of the response; only prompts
  with calls can tell. Prompts of other packages may know neither.
  """
  refuses = getattr(prompt, "refuses", None)
  reasoning = getattr(prompt, "reasoning", None)
  return (
    refuses is not None and refuses(response_ids),
    reasoning and reasoning(response_ids),
  )


def _is_late(state: _Live, config: RolloutConfig) -> bool:
  """Whether an episode has had all the time that it may take."""
  most = config.max_seconds
  return most is not None and time.monotonic() - state.began > most


def _terminates(state: _Live, out, invalid: bool, config) -> bool:
  """Whether a step ends its episode, be it by one refusal too many in a row."""
  most = config.max_invalid
  if out.terminated or out.truncated or most is None or not invalid:
    return out.terminated
  before = state.steps[-(most - 1) :] if most > 1 else []
  return len(before) == most - 1 and all(s.metadata["invalid"] for s in before)


def _advance(
  state: _Live, response: types.Response, prompt, config: RolloutConfig
) -> _Ended | _Live:
  """Steps one environment; returns the trajectory if that ended it."""
  episode = state.episode
  try:
    out = state.env.step(prompt.action(response.response_ids))
    if not abs(out.reward) <= types.LARGEST_REWARD:  # Nor is a NaN.
      raise ValueError(f"the environment gave the reward {out.reward}")
    scores = {k: float(v) for k, v in out.info.get("scores", {}).items()}
    answered = state.turns[-1]._replace(response_ids=response.response_ids)
    state.turns[-1:] = [answered, _turn(out)]
    refused, thoughts = _told_by(prompt, response.response_ids)
    next_ids = prompt.extend(state.prompt_ids, state.turns)
  except Exception as error:
    return _failed(episode, state.steps, error)
  full = len(next_ids) + config.max_new_tokens > config.max_tokens
  out_of_steps = len(state.steps) + 1 >= config.max_steps
  late = _is_late(state, config)
  cut = out.truncated or full or out_of_steps or late
  invalid = bool(out.info.get("invalid", False) or refused)
  terminated = _terminates(state, out, invalid, config)
  truncated = not terminated and cut
  state.steps.append(
    types.Step(
      prompt_ids=state.prompt_ids,
      response_ids=response.response_ids,
      response_mask=np.ones(len(response.response_ids), bool),
      behaviour_logp=response.behaviour_logp,
      reward=float(out.reward),
      trajectory_uid=episode.uid,
      step_index=len(state.steps),
      group_uid=episode.task.uid,
      policy_version=response.policy_version,
      terminated=terminated,
      truncated=truncated,
      stop_reason=response.stop_reason,
      anchor_obs=state.anchor,
      metadata={
        "invalid": invalid,
        **({"late": True} if late and truncated else {}),
      },
      reasoning_mask=thoughts,
    )
  )
  state.prompt_ids = next_ids
  state.anchor = out.info.get("anchor", "")
  if not (terminated or truncated):
    return state
  return _Ended(
    types.Trajectory(
      episode.uid,
      episode.task,
      tuple(state.steps),
      # The critic reads what fits of the prompt that would have come next.
      None if terminated else next_ids[: config.max_tokens],
      bool(out.info.get("won", False)),
      scores=scores,
    )
  )
