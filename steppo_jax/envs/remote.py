"""Environments of OpenEnv, each episode in a session over a WebSocket.

A server of OpenEnv keeps an episode while a connection to `/ws` lasts:
over plain HTTP it makes a new environment for every request. A message is
`{"type": "reset" | "step" | "close", "data": {...}}`, and each of the first two
is answered by an observation or an error.

Source: the packages openenv 0.10.0 and openenv-core 0.3.0, both of which were
played with (`make test-standards`).
"""

import collections
import contextlib
import itertools
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from steppo_jax import types
from steppo_jax.envs import base

# A longer answer is refused.
_MAX_BYTES = 1 << 26
# What a server calls its fields that does not describe them.
_TEXT_FIELDS = {"action": "message", "observation": "text"}
# What every observation has beside what is seen.
_COMMON = ("done", "reward", "metadata")
_numbers = itertools.count()
# How many environments of this process use each service.
_users: collections.Counter[str] = collections.Counter()
_users_lock = threading.Lock()


class RemoteEnv:
  """One session of an OpenEnv server.

  Only what cannot have happened is sent again: a reset, on a new connection. A
  step whose answer does not come is an error of its episode. An action that the
  server refuses (VALIDATION_ERROR) is an invalid action, which the policy is
  told; the episode goes on.

  Args:
    url: Of the server, such as "http://HOST:8000"; a path is kept. Of several,
      with blanks between them, an environment takes the one with the fewest
      users.
    action_field: Field of the action that holds the policy's text; "*" for a
      text that is the whole action as a JSON object. None: the only text field
      of the action in the server's own description (`GET /schema`), or
      "message" without one. A field that is no text is read as JSON.
    observation_field: Field of the observation that the policy reads. None: the
      only text field in the description; of several, the whole observation as
      JSON; "text" without a description.
    sessions: Episodes that each server plays at once (its
      `max_concurrent_envs`). No more are under way in all than addresses times
      sessions.
    timeout_s: Seconds for a connection, and for each answer.
    retries: How often a reset is sent again.
    backoff_s: Seconds before it is, doubled each time.
    won_above: An episode that ends with a last reward above this counts as won,
      unless the observation's metadata has "won".

  Raises:
    ValueError: the address is not one of HTTP, or `sessions` is below 1.
    RuntimeError: the package websockets is missing.
  """

  def __init__(
    self,
    url: str,
    *,
    action_field: str | None = None,
    observation_field: str | None = None,
    sessions: int = 1,
    timeout_s: float = 30.0,
    retries: int = 2,
    backoff_s: float = 0.25,
    won_above: float = 0.0,
  ):
    self.at_once(url, sessions)
    self._client = _client()
    self._action_field = action_field
    self._observation_field = observation_field
    self._timeout_s = float(timeout_s)
    self._retries = retries
    self._backoff_s = backoff_s
    self._won_above = won_above
    self._schema: dict[str, dict[str, Any]] | None = None
    self._session = contextlib.ExitStack()
    self._socket: Any = None
    self._episode: str | None = None
    self._commands: list[str] = []
    addresses = url.split()
    with _users_lock:
      self._url = min(addresses, key=_users.__getitem__)
      _users[self._url] += 1
    self._counted = True

  @staticmethod
  def at_once(url: str, sessions: int = 1) -> int:
    """How many episodes can be under way at once.

    Raises:
      ValueError: an address is not one of HTTP, or `sessions` is below 1.
    """
    for one in url.split():
      parts = urllib.parse.urlsplit(one)
      if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url={one!r} is not http://HOST:PORT or https://...")
    if not url.split():
      raise ValueError("url is empty: give http://HOST:PORT")
    if sessions < 1:
      raise ValueError(f"sessions={sessions} must be at least 1")
    return len(url.split()) * sessions

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task in a session of the server."""
    data = {
      "seed": task.payload.get("seed", seed),
      "episode_id": f"{os.getpid()}-{next(_numbers)}",
      **task.payload.get("options", {}),
    }
    self._episode = None
    self._commands = []
    for attempt in itertools.count():
      try:
        answer = self._ask("reset", data)
        break
      except base.EnvError:
        self._hang_up()
        if attempt >= self._retries:
          raise
      time.sleep(self._backoff_s * 2**attempt)
    if "code" in answer:
      raise self._refused("reset", answer)
    self._episode = data["episode_id"]
    return self._time_step(answer)

  def step(self, text: str) -> types.TimeStep:
    """Answers one text.

    Raises:
      RuntimeError: no task was started, or its session is lost.
    """
    if self._episode is None or self._socket is None:
      raise RuntimeError("call reset(task, seed) before step")
    try:
      action = self._action(text)
    except ValueError as error:
      return self._invalid(str(error))
    try:
      answer = self._ask("step", action)
    except base.EnvError:
      self._hang_up()  # A late answer must not be taken for the next one.
      raise
    if "code" not in answer:
      return self._time_step(answer)
    if answer["code"] == "VALIDATION_ERROR":
      return self._invalid(_reasons(answer))
    raise self._refused("step", answer)

  def close(self) -> None:
    """Ends the session and leaves its place to others."""
    if self._socket is not None:
      with contextlib.suppress(Exception):
        self._socket.send(json.dumps({"type": "close"}))
    self._hang_up()
    with _users_lock:
      _users[self._url] -= self._counted
      self._counted = False

  def _hang_up(self):
    self._socket = None
    with contextlib.suppress(Exception):
      self._session.close()

  def _where(self, kind):
    return f"{kind} of {self._url}"

  def _ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The data of the answer; that of an error has a "code"."""
    where = self._where(kind)
    if self._socket is None:
      self._connect(where)
    closed = self._client.ConnectionClosed
    try:
      # A server without a place says so and hangs up before it is asked.
      with contextlib.suppress(closed):
        self._socket.send(json.dumps({"type": kind, "data": data}))
      text = self._socket.recv(timeout=self._timeout_s)
    except TimeoutError:
      raise base.EnvTimeout(
        f"{where}: no answer within {self._timeout_s:g} s"
      ) from None
    except (OSError, closed) as error:
      raise base.EnvBadAnswer(
        f"{where}: the connection broke: {type(error).__name__}: {error}"
      ) from error
    return _parsed(where, text)

  def _connect(self, where):
    parts = urllib.parse.urlsplit(self._url)
    parts = parts._replace(
      scheme="wss" if parts.scheme == "https" else "ws",
      path=f"{parts.path.rstrip('/')}/ws",
    )
    try:
      self._socket = self._session.enter_context(
        self._client.connect(
          urllib.parse.urlunsplit(parts),
          open_timeout=self._timeout_s,
          close_timeout=1,
          max_size=_MAX_BYTES,
        )
      )
    except TimeoutError:
      raise base.EnvUnreachable(
        f"{where}: no connection within {self._timeout_s:g} s"
      ) from None
    except OSError as error:
      raise base.EnvUnreachable(
        f"{where}: no connection ({error}): is the service up?"
      ) from error
    except self._client.WebSocketException as error:
      raise base.EnvBadAnswer(
        f"{where}: no WebSocket of OpenEnv at {parts.path}: {error}"
      ) from error
    if self._schema is None:
      self._schema = _schema(self._url, self._timeout_s)

  def _refused(self, kind, answer) -> base.EnvError:
    code, where = answer["code"], self._where(kind)
    if code == "EXECUTION_ERROR":
      return base.EnvRaised(code, f"{where}: it raised: {_reasons(answer)}")
    return base.EnvBadAnswer(f"{where}: {code}: {_reasons(answer)}")

  def _field(self, part: str, chosen: str | None) -> str | None:
    """The field that holds a text; None where several do, or none."""
    if chosen is not None:
      return chosen
    fields = self._schema.get(part)
    if fields is None:
      return _TEXT_FIELDS[part]
    texts = [n for n, one in fields.items() if one.get("type") == "string"]
    if len(fields) == 1 or len(texts) == 1:
      return (texts or list(fields))[0]
    return None

  def _action(self, text: str) -> dict[str, Any]:
    """The action that a text says; raises ValueError for none."""
    name = self._field("action", self._action_field)
    known = self._schema.get("action") or {}
    if name is None:
      raise base.EnvBadAnswer(
        f"{self._url}: an action has the fields {', '.join(known) or 'none'}: "
        "set action_field to one of them, or to '*' for a text that is the "
        "whole action as JSON"
      )
    if name == "*":
      action = json.loads(text)
      if not isinstance(action, dict):
        raise ValueError("an action is a JSON object")
      return action
    kind = known.get(name, {}).get("type", "string")
    return {name: text if kind == "string" else json.loads(text)}

  def _invalid(self, reason: str) -> types.TimeStep:
    info = {"won": False, "invalid": True, "anchor": ""}
    if self._commands:
      info["commands"] = self._commands
    return types.TimeStep(
      f"The action was refused: {reason}", 0.0, False, False, info
    )

  def _time_step(self, answer):
    done, reward = answer.get("done"), answer.get("reward")
    seen = answer.get("observation")
    facts = answer.get("metadata") or {}
    if isinstance(seen, Mapping):
      facts = {**(seen.get("metadata") or {}), **facts}
      seen = self._seen(seen)
    if not isinstance(seen, str) or not isinstance(done, bool):
      raise base.EnvBadAnswer(
        f"{self._url}: observation {str(seen)[:80]!r} is not text, or done "
        f"{done!r} is not true or false"
      )
    reward = 0.0 if reward is None else float(reward)
    # OpenEnv has no word for an episode that was cut short.
    truncated = bool(facts.get("truncated", False))
    info = {
      "won": bool(facts.get("won", done and reward > self._won_above)),
      "invalid": bool(facts.get("invalid", False)),
      "anchor": str(facts.get("anchor", "")),
    }
    self._commands = [str(c) for c in facts.get("commands") or ()]
    if self._commands:
      info["commands"] = self._commands
    return types.TimeStep(seen, reward, done and not truncated, truncated, info)

  def _seen(self, observation):
    name = self._field("observation", self._observation_field)
    if name is None:
      rest = {k: v for k, v in observation.items() if k not in _COMMON}
      return json.dumps(rest, ensure_ascii=False)
    if name not in observation:
      raise base.EnvBadAnswer(
        f"{self._url}: the observation has no {name!r}, only "
        f"{', '.join(sorted(observation)) or 'nothing'}: set observation_field"
      )
    found = observation[name]
    return found if isinstance(found, str) else json.dumps(found)


def _client():
  """What is needed of the package websockets."""
  try:
    from websockets import exceptions
    from websockets.sync import client
  except ImportError as error:
    raise RuntimeError(
      "env.name=remote needs the package websockets: "
      "pip install 'steppo_jax[openenv]'"
    ) from error

  return SimpleNamespace(
    connect=client.connect,
    ConnectionClosed=exceptions.ConnectionClosed,
    WebSocketException=exceptions.WebSocketException,
  )


def _schema(url: str, timeout_s: float) -> dict[str, dict[str, Any]]:
  """The fields of actions and observations, as far as a server tells them."""
  try:
    address = f"{url.rstrip('/')}/schema"
    with urllib.request.urlopen(address, timeout=timeout_s) as answer:
      told = json.loads(answer.read(_MAX_BYTES))
    return {
      part: {
        name: one
        for name, one in told[part]["properties"].items()
        if name not in _COMMON
      }
      for part in _TEXT_FIELDS
      if part in told
    }
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return {}


def _parsed(where: str, text: str | bytes) -> dict[str, Any]:
  shown = str(text[:200])
  try:
    answer = json.loads(text)
  except ValueError:
    raise base.EnvBadAnswer(f"{where}: not JSON: {shown}") from None
  data = answer.get("data") if isinstance(answer, dict) else None
  if not isinstance(data, dict) or answer.get("type") not in (
    "observation",
    "error",
  ):
    raise base.EnvBadAnswer(f"{where}: no observation: {shown}")
  if answer["type"] == "observation":
    return {k: v for k, v in data.items() if k != "code"}
  data = {"code": "unnamed", **data}
  if data["code"] == "CAPACITY_REACHED":
    raise base.EnvUnreachable(
      f"{where}: {_reasons(data)}: give the server a larger max_concurrent_envs"
    )
  return data


def _reasons(error: Mapping[str, Any]) -> str:
  """What a server says of an error, in one line."""
  told = [str(error.get("message", ""))]
  for one in error.get("errors") or ():
    if isinstance(one, Mapping):
      place = ".".join(map(str, one.get("loc") or ()))
      told.append(f"{place}: {one.get('msg', '')}".removeprefix(": "))
  return "; ".join(filter(None, told))[:500]
