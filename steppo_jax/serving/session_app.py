"""The endpoints of sessions: made, rewarded, labelled, finished."""

import asyncio
import contextlib
import logging
import re
from typing import Any

from starlette import requests, responses

from steppo_jax.serving import answers, http, session_keys, session_schema
from steppo_jax.serving import session as session_lib
from steppo_jax.serving import sessions as sessions_lib

_log = logging.getLogger(__name__)
# Below these the model is asked.
_ASKED = ("/v1/", "/inference/")
# Seconds between two looks for sessions that nobody uses any more.
_EVERY_S = 5.0


def told(request: requests.Request) -> dict[str, Any]:
  """What the headers of a call tell of its place in the session.

  Raises:
    answers.Fault: a header is no number.
  """
  found = {}
  for name, header in (
    ("resent", "x-stainless-retry-count"), ("order", "x-session-order"),
  ):  # fmt: skip
    text = request.headers.get(header)
    if text is None:
      continue
    if not (text.isascii() and text.isdigit() and len(text) < 10):
      raise answers.Fault(
        400, f"the header {header}={text[:20]!r} must be 0 or more",
        "invalid_request_error",
      )  # fmt: skip
    found[name] = int(text)
  return found | {"resent": found.get("resent", 0) > 0}


def live(
  sessions: sessions_lib.Sessions, opened: session_keys.Opened
) -> session_lib.Session:
  """A session that is known here.

  Raises:
    answers.Fault: it is not.
  """
  session = sessions.get(opened)
  if session is None:
    raise session_lib.lost()
  return session


def lifespan(sessions: sessions_lib.Sessions) -> Any:
  """What a server does beside answering, as Starlette takes it."""

  async def watch():
    while True:
      await asyncio.sleep(min(_EVERY_S, sessions.limits.idle_s / 2))
      try:
        await sessions.expire()
      except Exception:
        _log.exception("sessions that nobody uses cannot be ended")

  @contextlib.asynccontextmanager
  async def running(_):
    task = asyncio.create_task(watch())
    try:
      yield
    finally:
      task.cancel()
      await asyncio.gather(task, return_exceptions=True)

  return running


class Names:
  """Sessions by what clients call them in X-Session-ID.

  Their clients have the server's key, and not one of the session.
  """

  def __init__(self, sessions: sessions_lib.Sessions):
    self._sessions = sessions
    self._begun: dict[str, session_keys.Opened] = {}

  async def opened(
    self, request: requests.Request
  ) -> session_keys.Opened | None:
    """The session of a request, which names one in its path or header.

    A call of the model by a name that is not known begins one, with the oldest
    task that waits.

    Returns:
      None for a request that belongs to no session, such as for the list of
      models.

    Raises:
      answers.Fault: there is none of that name, or see
        `sessions.Sessions.create`.
    """
    own = request.path_params.get("session")
    name = own or request.headers["x-session-id"]
    asks = request.method == "POST" and request.url.path.startswith(_ASKED)
    if own is None and not asks:
      return None
    if name in self._begun:
      return self._begun[name]
    if not re.fullmatch(r"[\x21-\x7e]{1,100}", name):
      raise answers.Fault(
        400, "the header X-Session-ID must have 1 to 100 printable characters",
        "invalid_request_error",
      )  # fmt: skip
    form = session_schema.Create(request_id=f"header:{name}")
    before = await self._sessions.request(form.request_id)
    if before is not None:  # A gateway before this one may have begun it.
      found = session_keys.Opened(before.uid, before.attempt)
    elif own is not None:
      raise answers.Fault(404, f"there is no session {name!r}", "not_found")
    else:
      # Calls of one name at the same time begin one.
      found = (await self._sessions.create(form)).opened
    self._begun[name] = found
    limits = self._sessions.limits
    if len(self._begun) > limits.live + limits.kept:
      self._begun = {
        n: one for n, one in self._begun.items() if self._sessions.get(one)
      }
    return found


class Handlers:
  """The handlers of sessions."""

  def __init__(self, sessions: sessions_lib.Sessions):
    self._sessions = sessions

  async def create(self, request: requests.Request) -> responses.Response:
    """`POST /sessions`, with the server's key."""
    if request.state.opened is not None:
      raise answers.Fault(
        401, "a session is made with the server's key, not with a session's",
        "invalid_api_key",
      )  # fmt: skip
    form = await http.read(request, session_schema.Create)
    if form.wanted() is not None and not self._sessions.limits.own_tasks:
      raise answers.Fault(
        400, "a run trains on its own tasks alone: leave task and group out, "
        "and the session gets one that waits", "invalid_request_error", "task",
      )  # fmt: skip
    session = await self._sessions.create(form)
    root = str(request.base_url).rstrip("/")
    own = f"{root}/sessions/{session.uid}"
    return responses.JSONResponse(
      session.told()
      | {
        "url": own,
        "base_url": f"{own}/v1",
        "api_key": self._sessions.keys.of(*session.opened),
      }
    )

  async def show(self, request: requests.Request) -> responses.Response:
    """`GET /sessions/ID`."""
    return responses.JSONResponse(self._live(request).told())

  async def reward(self, request: requests.Request) -> responses.Response:
    """`POST /sessions/ID/rewards`."""
    form = await http.read(request, session_schema.Rewarded)
    session = self._live(request)
    return responses.JSONResponse(self._sessions.reward(session, form))

  async def label(self, request: requests.Request) -> responses.Response:
    """`POST /sessions/ID/labels`."""
    form = await http.read(request, session_schema.Labelled)
    session = self._live(request)
    return responses.JSONResponse(self._sessions.label(session, form))

  async def finish(self, request: requests.Request) -> responses.Response:
    """`POST /sessions/ID/finish`."""
    form = await http.read(request, session_schema.Finish)
    session = self._sessions.get(request.state.opened)
    if session is None:
      opened = request.state.opened
      found = await self._sessions.finished_before(opened, form)
    else:
      found = await self._sessions.finish(session, form)
    return responses.JSONResponse(found)

  def _live(self, request: requests.Request) -> session_lib.Session:
    return live(self._sessions, request.state.opened)
