"""Environments behind HTTP: `POST /reset`, `POST /step`, `GET /state`.

The messages have the form of OpenEnv: a step sends `{"action": {...}}`, and an
answer is `{"observation": {...}, "reward": r, "done": d}`.

Source: github.com/meta-pytorch/OpenEnv, `core/env_server`.
"""

import collections
import http.client
import itertools
import json
import os
import select
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from steppo_jax import types
from steppo_jax.envs import base

# A longer answer is refused.
_MAX_BYTES = 1 << 26
_numbers = itertools.count()
# How many environments of this process use each service.
_users: collections.Counter[str] = collections.Counter()
_users_lock = threading.Lock()


class RemoteEnv:
  """One session of an environment service.

  The service must keep the episode between requests. `GET /state` tells, and
  an `episode_id` or `step_count` there that is not this episode's is an error:
  another client, or a service that forgets. A service without `/state` is taken
  at its word.

  Only what cannot have happened is sent again: a request whose connection was
  refused, or that was answered 429 or 503; a reset and a state also after any
  other failure.

  Args:
    url: Of the service, such as "http://HOST:8000"; a path is kept. Of several,
      with blanks between them, an environment takes the one with the fewest
      users: `rollout.max_live` as many lets each play one episode at a time.
    action_field: Field of the action that holds the text.
    observation_field: Field of the observation that holds the text; an
      observation that is text itself needs none.
    timeout_s: Seconds for one request, from connecting to the last byte.
    retries: How often a request is sent again, where that is safe.
    backoff_s: Seconds before it is, doubled each time.
    won_above: An episode that ends with a last reward above this counts as won,
      unless the answer's metadata has "won".
    check_state: Whether `GET /state` is read after every request.

  Raises:
    ValueError: the address is not one of HTTP.
  """

  def __init__(
    self,
    url: str,
    *,
    action_field: str = "message",
    observation_field: str = "text",
    timeout_s: float = 30.0,
    retries: int = 2,
    backoff_s: float = 0.25,
    won_above: float = 0.0,
    check_state: bool = True,
  ):
    found = {one: urllib.parse.urlsplit(one) for one in url.split()}
    for one, parts in found.items():
      if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url={one!r} is not http://HOST:PORT or https://...")
    if not found:
      raise ValueError("url is empty: give http://HOST:PORT")
    with _users_lock:
      url = min(found, key=_users.__getitem__)
      _users[url] += 1
    parts = found[url]
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    self._connection = kind(parts.hostname, parts.port, timeout=timeout_s)
    self._path = parts.path.rstrip("/")
    self._url = url
    self._action_field = action_field
    self._observation_field = observation_field
    self._timeout_s = float(timeout_s)
    self._retries = retries
    self._backoff_s = backoff_s
    self._won_above = won_above
    self._episode: Any = None
    self._steps = 0
    self._has_state = check_state
    self._counted = True

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task in a session of the service."""
    self._episode = f"{os.getpid()}-{next(_numbers)}"
    self._steps = 0
    seed = task.payload.get("seed", seed)
    body = {"seed": seed, "episode_id": self._episode}
    answer = self._ask(
      "POST", "/reset", body | dict(task.payload.get("options", {})), safe=True
    )
    state = self._state()
    # A service may name its episodes itself.
    self._episode = state.get("episode_id") or self._episode
    self._check(state)
    return self._time_step(answer)

  def step(self, text: str) -> types.TimeStep:
    """Answers one text.

    Raises:
      RuntimeError: no task was started.
    """
    if self._episode is None:
      raise RuntimeError("call reset(task, seed) before step")
    body = {
      "action": {self._action_field: text},
      "timeout_s": self._timeout_s,
      "episode_id": self._episode,
      "request_id": f"{self._episode}-{self._steps}",
    }
    answer = self._ask("POST", "/step", body, safe=False)
    self._steps += 1
    self._check(self._state())
    return self._time_step(answer)

  def state(self) -> dict[str, Any]:
    """What the service says of itself, {} if it has no `/state`."""
    return self._state()

  def close(self) -> None:
    """Hangs up and leaves the service to others."""
    self._connection.close()
    with _users_lock:
      _users[self._url] -= self._counted
      self._counted = False

  def _state(self):
    if not self._has_state:
      return {}
    try:
      return self._ask("GET", "/state", None, safe=True)
    except _Missing:
      self._has_state = False
      return {}

  def _check(self, state):
    """Refuses an answer that belongs to another episode."""
    wanted = {"episode_id": self._episode, "step_count": self._steps}
    found = {
      name: value if state.get(name) is None else state[name]
      for name, value in wanted.items()
    }
    if found != wanted:
      raise base.EnvBadAnswer(
        f"{self._url} is at {found}, this episode at {wanted}: the service "
        "keeps no episode between requests, or another client uses it"
      )

  def _time_step(self, answer):
    seen = answer.get("observation")
    facts = answer.get("metadata") or {}
    if isinstance(seen, Mapping):
      if self._observation_field not in seen:
        raise base.EnvBadAnswer(
          f"{self._url}: the observation has no {self._observation_field!r}, "
          f"only {', '.join(sorted(seen)) or 'nothing'}: set observation_field"
        )
      facts = {**(seen.get("metadata") or {}), **facts}
      seen = seen[self._observation_field]
    done, reward = answer.get("done"), answer.get("reward")
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
    if facts.get("commands"):
      info["commands"] = [str(c) for c in facts["commands"]]
    return types.TimeStep(seen, reward, done and not truncated, truncated, info)

  def _ask(self, method, path, body, *, safe):
    """One request, sent again where that is safe; the JSON of its answer."""
    for attempt in itertools.count():
      try:
        return self._once(method, path, body)
      except base.EnvError as error:
        self._connection.close()
        may = safe or isinstance(error, base.EnvUnreachable)
        may = may and not isinstance(error, _Missing)
        if not may or attempt >= self._retries:
          raise
      time.sleep(self._backoff_s * 2**attempt)
    return None

  def _once(self, method, path, body):
    deadline = time.monotonic() + self._timeout_s
    where = f"{method} {self._url.rstrip('/')}{path}"
    data = None if body is None else json.dumps(body).encode("ascii")
    self._connect(where)
    try:
      self._connection.request(
        method,
        self._path + path,
        data,
        {"Content-Type": "application/json", "Accept": "application/json"},
      )
      status, text = self._read(deadline)
    except TimeoutError:
      raise base.EnvTimeout(
        f"{where}: no answer within {self._timeout_s:g} s"
      ) from None
    except (OSError, http.client.HTTPException) as error:
      raise base.EnvBadAnswer(
        f"{where}: the connection broke: {type(error).__name__}: {error}"
      ) from error
    return _parsed(where, path, status, text)

  def _connect(self, where):
    """Connects anew unless the last connection still stands.

    A service that closed it meanwhile would break the request after it was
    sent, when nobody knows whether it was heard.
    """
    if self._connection.sock is not None and not _is_open(
      self._connection.sock
    ):
      self._connection.close()
    if self._connection.sock is not None:
      return
    try:
      self._connection.connect()
    except TimeoutError:
      raise base.EnvUnreachable(
        f"{where}: no connection within {self._timeout_s:g} s"
      ) from None
    except OSError as error:
      raise base.EnvUnreachable(
        f"{where}: no connection ({error}): is the service up?"
      ) from error

  def _read(self, deadline):
    """Status and body; the time limit is for all of it, however it drips."""
    sock = self._connection.sock

    def hurry():
      left = deadline - time.monotonic()
      if left <= 0:
        raise TimeoutError
      sock.settimeout(left)

    hurry()
    response = self._connection.getresponse()
    parts, size = [], 0
    while True:
      if not response.isclosed():
        hurry()
      part = response.read1(1 << 16)
      size += len(part)
      if size > _MAX_BYTES:
        raise http.client.HTTPException(f"more than {_MAX_BYTES} bytes")
      if not part:
        break
      parts.append(part)
    if response.length:
      raise http.client.IncompleteRead(b"", response.length)
    response.close()
    if self._connection.sock is not None:
      sock.settimeout(self._timeout_s)
    return response.status, b"".join(parts)


class _Missing(base.EnvBadAnswer):
  """The service has no such path."""


def _is_open(sock) -> bool:
  """Whether the other side has neither hung up nor said what nobody asked."""
  poll = select.poll()
  poll.register(sock, select.POLLIN)
  return not poll.poll(0)


def _parsed(where, path, status, text):
  shown = text[:200].decode("utf-8", "replace")
  if status in (429, 503):
    raise base.EnvUnreachable(f"{where}: status {status}: {shown}")
  if status in (404, 405) and path == "/state":
    raise _Missing(f"{where}: status {status}")
  if status != 200:
    raise base.EnvBadAnswer(f"{where}: status {status}: {shown}")
  try:
    answer = json.loads(text)
  except ValueError:
    raise base.EnvBadAnswer(f"{where}: not JSON: {shown}") from None
  if not isinstance(answer, dict):
    raise base.EnvBadAnswer(f"{where}: not an object: {shown}")
  return answer
