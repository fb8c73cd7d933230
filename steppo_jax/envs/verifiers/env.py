"""Tasks and environments of verifiers, played by our loop.

An environment of verifiers is a program that asks a model. Here it is turned
round: it runs in a thread of its own and asks an endpoint of this process
(`endpoint`), every call of which is what the agent sees next, and every answer
of the agent is what the call returns.

Source: the package verifiers 0.4.0 (`verifiers.v1`), with which it is tested
(`make test-standards`).
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from steppo_jax import types
from steppo_jax.envs import base, calls, guides, seeds
from steppo_jax.envs.verifiers import endpoint

GUIDE = guides.Guide(
  part="You answer what is asked of you.",
  answer="Answer with nothing but the answer.",
  tools=guides.env_step("gives the answer", "42"),
  unwrap="env_step",
)

# The name by which verifiers finds our harness.
_HARNESS = "steppo_jax_harness"
_CALL = "tool_call"
# Of ten tasks that follow each other, the places of those of each split.
_SHARES = {0: range(8), 1: range(8, 9), 2: range(9, 10)}
_LONG_S = 60.0


class VerifiersEnv:
  """Plays the tasks of one taskset, in the environment that it names.

  The reward of a step is what the episode's rewards have grown by since the
  step before. Most tasksets judge a whole episode, so that its last step is
  paid. An answer with a call of a tool that cannot be read is an invalid
  action, which verifiers never sees.

  Args:
    taskset: Name of an installed taskset, as verifiers takes it, or its
      configuration as a mapping with an `id`.
    config: Further fields of verifiers' configuration of the environment, such
      as `{"id": "best-of-n"}` or `{"agent": {"max_turns": 5}}`.
    harness: Name of the harness that plays the agent; None for ours, which
      runs in this process. verifiers' own need the program `uv`.
    tasks: How many tasks of the taskset are played, from the first on. Of every
      ten that follow each other eight are of the split "train", one of
      "valid_seen" and one of "valid_unseen".
    won_at: An episode whose rewards add up to this counts as won.
    invalid_penalty: Subtracted from the reward of a call that cannot be read.

  Raises:
    RuntimeError: verifiers is not installed.
    ValueError: there is no such taskset, it has fewer than ten tasks, its
      environment has several agents, or its configuration is refused.
  """

  def __init__(
    self,
    taskset: str | Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    harness: str | None = None,
    tasks: int = 1000,
    won_at: float = 1.0,
    invalid_penalty: float = 0.0,
  ):
    self._env, self._context = _make(taskset, dict(config or {}), harness)
    self._tasks = list(itertools.islice(self._env.taskset, tasks))
    if len(self._tasks) < 10:
      raise ValueError(
        f"env.options: taskset={self._name} has {len(self._tasks)} tasks: "
        "at least ten are needed, so that every split has one"
      )
    self._won_at, self._penalty = won_at, float(invalid_penalty)
    self._calls = endpoint.Calls()
    self._asked: endpoint.Asked | None = None
    self._traces: list[Any] = []
    self._paid = 0.0
    self._running: Any = None
    self._endpoint = endpoint.Endpoint(self._calls.take)
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
    self._thread.start()
    self._serving = self._env.serving()
    try:
      self._wait(self._serving.__aenter__())
    except BaseException:
      self._end_threads()
      raise

  @property
  def _name(self) -> str:
    return self._env.config.taskset.id

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts the task of its seed, which says its split too.

    Raises:
      EnvRaised: the episode failed before it asked anything.
    """
    self._leave()
    at = seeds.place(task.payload.get("seed", seed))
    share = _SHARES[at.split]
    own = [one for i, one in enumerate(self._tasks) if i % 10 in share]
    name, put = self._calls.begin()
    self._traces = traces = []
    self._paid = 0.0
    context = self._context(name, self._endpoint.url)
    self._running = asyncio.run_coroutine_threadsafe(
      self._env.run_episode(
        own[at.number % len(own)], context, on_trace=traces.append
      ),
      self._loop,
    )
    self._running.add_done_callback(put)
    out = self._next()
    return out._replace(reward=0.0)

  def step(self, text: str) -> types.TimeStep:
    """Answers the call that waits.

    Raises:
      RuntimeError: no episode is under way.
      EnvRaised: the episode failed.
    """
    asked = self._asked
    if asked is None:
      raise RuntimeError("no episode is under way: call reset(task, seed)")
    try:
      message = _message(text, asked)
    except ValueError as error:
      info = self._info(asked) | {"invalid": True}
      told = f"The call was refused: {error}"
      return types.TimeStep(told, -self._penalty, False, False, info)
    self._asked = None
    asked.answers.put(message)
    return self._next()

  def close(self) -> None:
    """Ends the episode, and verifiers' servers."""
    self._leave()
    with contextlib.suppress(Exception):
      self._wait(self._serving.__aexit__(None, None, None))
    self._end_threads()

  def _next(self) -> types.TimeStep:
    """What comes next: a call, or the end of the episode."""
    found = self._calls.next()
    if isinstance(found, endpoint.Asked):
      self._asked = found
      return types.TimeStep(
        _seen(found), self._earned(), False, False, self._info(found)
      )
    self._running = None
    self._calls.end()
    episode = found.result()
    faults = [*episode.errors, *(e for t in episode.traces for e in t.errors)]
    if not episode.ok and faults:
      raise base.EnvRaised(faults[-1].type, faults[-1].message[:2000])
    cut = any(t.is_truncated or t.is_timeout for t in episode.traces)
    reward = self._earned()
    info = self._info(None) | {"won": self._paid >= self._won_at}
    return types.TimeStep("The episode is over.", reward, not cut, cut, info)

  def _earned(self) -> float:
    """What the rewards have grown by since this was last asked."""
    total = float(sum(trace.reward for trace in self._traces))
    earned, self._paid = total - self._paid, total
    return earned

  def _info(self, asked: endpoint.Asked | None) -> dict[str, Any]:
    said = json.dumps(asked.messages if asked else "", sort_keys=True)
    numbers = {
      name: float(value)
      for trace in self._traces
      for name, value in trace.metrics.items()
      if value is not None
    }
    return {
      "won": False,
      "invalid": False,
      "anchor": hashlib.sha256(said.encode()).hexdigest(),
      "scores": numbers | {"reward": self._paid},
    }

  def _leave(self) -> None:
    """Ends the episode that is under way, if there is one."""
    running, asked = self._running, self._asked
    self._running = self._asked = None
    if running is not None:
      running.cancel()
    if asked is not None:
      asked.answers.put(None)
    self._calls.end()

  def _wait(self, awaited):
    return asyncio.run_coroutine_threadsafe(awaited, self._loop).result(_LONG_S)

  def _end_threads(self) -> None:
    self._endpoint.close()
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join(_LONG_S)
    if not self._thread.is_alive():
      self._loop.close()


def _make(taskset, config, harness):
  """verifiers' environment, and what makes the context of an episode."""
  try:
    from verifiers.v1.clients import ModelContext
    from verifiers.v1.configs import agent as agents
    from verifiers.v1.configs.client import EvalClientConfig
    from verifiers.v1.utils import loaders
  except ImportError as error:
    raise RuntimeError(
      f"env.name=verifiers needs the package verifiers ({error}): install it "
      "beside this package, or name with env.python an interpreter that has it"
    ) from error
  if harness is None:
    from steppo_jax.envs.verifiers import harness as own

    # verifiers imports it by this name.
    sys.modules[_HARNESS] = own
    harness = _HARNESS
  taskset = {"id": taskset} if isinstance(taskset, str) else dict(taskset)
  try:
    kind = loaders.env_config_type(taskset.get("id", ""), config.get("id", ""))
    names = [
      name
      for name, field in kind.model_fields.items()
      if isinstance(field.default, agents.AgentConfig)
    ]
    if len(names) != 1:
      raise ValueError(
        f"its environment has the agents {', '.join(names)}, and one agent is "
        "played here: let verifiers play it against the gateway"
      )
    played = {"runtime": {"type": "subprocess"}, "harness": {"id": harness}}
    config[names[0]] = played | dict(config.get(names[0], {}))
    made = loaders.load_environment(
      loaders.resolve_env_config(config | {"taskset": taskset})
    )
  except (ValueError, TypeError, AttributeError, ImportError) as error:
    raise ValueError(
      f"env.options: taskset={taskset.get('id')!r}: {error}"
    ) from error
  return made, lambda name, url: ModelContext(
    model=name,
    client=EvalClientConfig(base_url=url, api_key_var="STEPPO_JAX_NO_KEY"),
  )


def _text(message: Mapping[str, Any]) -> str:
  """The text of a message.

  Raises:
    ValueError: it has something else, such as a picture.
  """
  content = message.get("content") or ""
  if isinstance(content, str):
    return content
  for part in content:
    if part.get("type") != "text":
      raise ValueError(f"a message has a part of the type {part.get('type')}")
  return "\n".join(part["text"] for part in content)


def _seen(asked: endpoint.Asked) -> str:
  """What is new for the agent: all messages behind its last answer."""
  roles = [message["role"] for message in asked.messages]
  begin = 0
  if "assistant" in roles:
    begin = len(roles) - roles[::-1].index("assistant")
  texts = [_text(message) for message in asked.messages[begin:]]
  if begin == 0 and asked.tools:
    texts.insert(0, _told(asked.tools))
  return "\n\n".join(filter(None, texts))


def _told(tools: Sequence[Mapping[str, Any]]) -> str:
  """The tools, as the agent reads of them."""
  lines = [
    "A tool is called so: "
    f'<{_CALL}>{{"name": "...", "arguments": {{...}}}}</{_CALL}>'
  ]
  for tool in tools:
    function = tool["function"]
    about = function.get("description") or ""
    needed = json.dumps(function.get("parameters") or {})
    lines.append(f"- {function['name']}: {about} Arguments: {needed}")
  return "\n".join(lines)


def _message(text: str, asked: endpoint.Asked) -> dict[str, Any]:
  """The message that an answer is, its thoughts left out.

  Raises:
    ValueError: a call cannot be read, or names no tool.
  """
  if not asked.tools:
    said = calls.without_thoughts(text).strip()
    return {"role": "assistant", "content": said}
  names = [tool["function"]["name"] for tool in asked.tools]
  closing = re.compile(rf"\s*</{_CALL}>")

  def read(text, mark):
    record, at = calls.read_json(text, mark.end())
    end = closing.match(text, at)
    if end is None:
      raise ValueError(f"no </{_CALL}> behind the object")
    if not isinstance(record, dict) or record.get("name") not in names:
      raise ValueError(f"there is no such tool; there are {', '.join(names)}")
    if not isinstance(record.get("arguments"), dict):
      raise ValueError('a call needs "arguments", an object')
    return [record], end.end()

  walk = calls.scan(text, f"<{_CALL}>", read)
  message = {"role": "assistant", "content": "".join(walk.rest).strip()}
  if walk.found:
    turn = sum(m["role"] == "assistant" for m in asked.messages)
    message["tool_calls"] = [
      {
        "id": f"call_{turn}_{k}",
        "type": "function",
        "function": {
          "name": call["name"],
          "arguments": json.dumps(call["arguments"]),
        },
      }
      for k, call in enumerate(walk.found)
    ]
  return message
