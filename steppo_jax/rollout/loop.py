"""The host-side environment loop: many episodes, whole batches of steps."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.rollout import prompting


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
  """

  max_steps: int = 15
  max_tokens: int = 256
  max_new_tokens: int = 12
  temperature: float = 1.0
  env_threads: int = 0


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


@dataclasses.dataclass
class _Live:
  """An episode under way."""

  episode: Episode
  env: types.Env
  prompt_ids: np.ndarray
  turns: list[types.Turn]
  anchor: str
  steps: list[types.Step] = dataclasses.field(default_factory=list)


def run(
  engine: types.Engine,
  make_env: Callable[[], types.Env],
  episodes: Iterable[Episode],
  prompt: prompting.Prompt,
  config: RolloutConfig,
  *,
  on_finish: Callable[[types.Trajectory], None] | None = None,
) -> list[types.Trajectory]:
  """Runs episodes side by side, as many as the engine has slots.

  A finished episode's slot is refilled at once, and an environment that is
  slow holds no other. Every episode comes back exactly once: an environment
  that raises ends its own episode with `error` and no other.

  Args:
    engine: Samples the responses.
    make_env: Makes one environment; environments are reused.
    episodes: What to run.
    prompt: Builds prompts from observations.
    config: Limits.
    on_finish: Called with each trajectory when it ends.

  Returns:
    Trajectories in the order of `episodes`.
  """
  waiting = collections.deque(enumerate(episodes))
  done: dict[int, types.Trajectory] = {}
  live: dict[int, _Live | None] = {}
  index_of: dict[str, int] = {}
  idle: list[types.Env] = []

  def finish(index, trajectory):
    done[index] = trajectory
    engine.release(trajectory.uid)
    state = live.pop(index)
    if state is not None and trajectory.error is None:
      idle.append(state.env)
    elif state is not None:
      _close(state.env)
    if on_finish is not None:
      on_finish(trajectory)

  with _Calls(config.env_threads) as calls:
    while waiting or live:
      while waiting and len(live) < engine.num_slots:
        index, episode = waiting.popleft()
        live[index], index_of[episode.uid] = None, index
        env = idle.pop() if idle else None
        calls.start(index, _start, episode, env, make_env, prompt, config)
      requests = []
      # All are with their environments: nothing to do but wait.
      for index, found in calls.finished(wait=len(calls) == len(live)):
        if isinstance(found, types.Trajectory):
          finish(index, found)
        else:
          live[index] = found
          requests.append(_request(found, config))
      engine.submit(requests)
      for request, response in engine.poll():
        index = index_of[request.session]
        calls.start(index, _advance, live[index], response, prompt, config)
  for env in idle:
    _close(env)
  return [done[index] for index in range(len(done))]


class _Calls:
  """Calls of environments, in threads or at once, by episode."""

  def __init__(self, threads: int):
    self._pool = futures.ThreadPoolExecutor(threads) if threads else None
    self._pending: dict[futures.Future, int] = {}

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._pool is not None:
      self._pool.shutdown(cancel_futures=True)

  def __len__(self) -> int:
    return len(self._pending)

  def start(self, index: int, function, *args) -> None:
    if self._pool is not None:
      future = self._pool.submit(function, *args)
    else:
      future = futures.Future()
      future.set_result(function(*args))
    self._pending[future] = index

  def finished(self, *, wait: bool) -> list[tuple[int, object]]:
    """Results that are there, in the order of the calls.

    Args:
      wait: Whether to wait for the first if there is none.
    """
    if wait:
      futures.wait(self._pending, return_when=futures.FIRST_COMPLETED)
    ready = [future for future in self._pending if future.done()]
    return [(self._pending.pop(future), future.result()) for future in ready]


def _close(env: types.Env) -> None:
  """Closes an environment; one that fails to close has nothing left to lose."""
  try:
    env.close()
  except Exception:
    return


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
    return types.Trajectory(episode.uid, episode.task, (), None, False, reason)
  return _Live(episode, env, prompt_ids, [turn], first.info.get("anchor", ""))


def _turn(out: types.TimeStep) -> types.Turn:
  return types.Turn(out.observation, out.info.get("commands", ()))


def _failed(episode, steps, error) -> types.Trajectory:
  reason = f"{type(error).__name__}: {error}"
  return types.Trajectory(
    episode.uid, episode.task, tuple(steps), None, False, reason
  )


def _request(state: _Live, config: RolloutConfig) -> types.Request:
  return types.Request(
    state.episode.uid,
    state.prompt_ids,
    (*state.episode.key, len(state.steps)),
    config.max_new_tokens,
    config.temperature,
  )


def _advance(
  state: _Live, response: types.Response, prompt, config: RolloutConfig
) -> types.Trajectory | _Live:
  """Steps one environment; returns the trajectory if that ended it."""
  episode = state.episode
  try:
    out = state.env.step(prompt.action(response.response_ids))
    answered = state.turns[-1]._replace(response_ids=response.response_ids)
    state.turns[-1:] = [answered, _turn(out)]
    next_ids = prompt.extend(state.prompt_ids, state.turns)
  except Exception as error:
    return _failed(episode, state.steps, error)
  full = len(next_ids) + config.max_new_tokens > config.max_tokens
  out_of_steps = len(state.steps) + 1 >= config.max_steps
  truncated = not out.terminated and (out.truncated or full or out_of_steps)
  state.steps.append(
    types.Step(
      prompt_ids=state.prompt_ids,
      response_ids=response.response_ids,
      response_mask=np.ones(len(response.response_ids), bool),
      rollout_logprobs=response.logprobs,
      reward=float(out.reward),
      trajectory_uid=episode.uid,
      step_index=len(state.steps),
      group_uid=episode.task.uid,
      policy_version=response.policy_version,
      terminated=out.terminated,
      truncated=truncated,
      stop_reason=response.stop_reason,
      anchor_obs=state.anchor,
      metadata={"invalid": bool(out.info.get("invalid", False))},
    )
  )
  state.prompt_ids = next_ids
  state.anchor = out.info.get("anchor", "")
  if not (out.terminated or truncated):
    return state
  return types.Trajectory(
    episode.uid,
    episode.task,
    tuple(state.steps),
    # The critic reads what fits of the prompt that would have come next.
    None if out.terminated else next_ids[: config.max_tokens],
    bool(out.info.get("won", False)),
  )


def summary(
  trajectories: Sequence[types.Trajectory],
) -> dict[str, tuple[float, float]]:
  """Rollout metrics as (sum, weight) by name; errors count in their own rate.

  Args:
    trajectories: Finished episodes.
  """
  whole = [t for t in trajectories if t.error is None]
  steps = [s for t in whole for s in t.steps]
  out = {
    "episodes": (float(len(trajectories)), 1.0),
    "error_share": (len(trajectories) - len(whole), len(trajectories)),
    "success": (sum(t.success for t in whole), len(whole)),
    "reward": (sum(t.total_reward for t in whole), len(whole)),
    "truncated_share": (sum(t.steps[-1].truncated for t in whole), len(whole)),
    "steps": (len(steps), len(whole)),
    "invalid_share": (
      sum(s.metadata.get("invalid", False) for s in steps),
      len(steps),
    ),
    "cut_response_share": (
      sum(s.stop_reason == "length" for s in steps),
      len(steps),
    ),
    "response_tokens": (sum(len(s.response_ids) for s in steps), len(steps)),
  }
  for family in sorted({t.task.family for t in whole}):
    of = [t for t in whole if t.task.family == family]
    out[f"success/{family}"] = (sum(t.success for t in of), len(of))
  won = [t for t in whole if t.success and t.task.golden_steps]
  out["length_over_golden"] = (
    sum(len(t.steps) / t.task.golden_steps for t in won),
    len(won),
  )
  return {name: (float(a), float(b)) for name, (a, b) in out.items()}
