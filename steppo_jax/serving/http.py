"""What every handler of HTTP does: bodies, errors, events, who has gone."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pydantic
from starlette import requests, responses

from steppo_jax.serving import answers, forms, schema

_log = logging.getLogger(__name__)
# A longer body is refused.
_MAX_BYTES = 1 << 25
_RETRY_AFTER_S = 1
# Where Anthropic's clients ask, and the header that they look for.
_MESSAGES, _REQUEST_ID = "/v1/messages/", "request-id"
# Seconds that a body may take, and each part of one that may be longer.
_BODY_S, _PART_S = 120.0, 60.0


class Gone(Exception):
  """The client has hung up."""


def answered(handler: Callable, tell: Callable | None = None) -> Callable:
  """A handler whose faults are answers.

  Args:
    handler: Takes a request.
    tell: Makes the body that tells a fault; None for OpenAI's form.
  """

  async def handle(request: requests.Request) -> responses.Response:
    try:
      found = await handler(request)
      if tell is not None:
        found.headers[_REQUEST_ID] = _new_id()
      return found
    except answers.Fault as fault:
      return error(fault, tell)
    except Gone:
      return responses.Response(status_code=499)
    except Exception:
      _log.exception("%s %s has failed", request.method, request.url.path)
      text = "the server has failed at this request: its log says how"
      return error(answers.Fault(500, text, "server_error"), tell)

  return handle


def key(request: requests.Request) -> str:
  """The key that a client sent, "" without one."""
  given = request.headers.get("authorization", "")
  kind, _, value = given.partition(" ")
  if kind.lower() == "bearer":
    return value.strip()
  return request.headers.get("x-api-key", "")


async def body(request: requests.Request) -> AsyncIterator[bytes]:
  """The body of a request as it comes.

  Raises:
    answers.Fault: nothing more of it comes.
    Gone: the client has hung up.
  """
  stream = aiter(request.stream())
  while True:
    try:
      async with asyncio.timeout(_PART_S):
        part = await anext(stream)
    except StopAsyncIteration:
      return
    except requests.ClientDisconnect:
      raise Gone from None
    except TimeoutError:
      raise _slow(_PART_S) from None
    yield part


def _slow(seconds: float) -> answers.Fault:
  return answers.Fault(
    408, f"the body was not sent within {seconds:g} s", "request_timeout"
  )


async def read(request: requests.Request, form: type) -> Any:
  """The body of a request in its form.

  Raises:
    answers.Fault: it is too long or too slow, or does not have that form.
    Gone: the client has hung up.
  """
  parts, size = [], 0
  try:
    async with asyncio.timeout(_BODY_S):
      async for part in body(request):
        parts.append(part)
        size += len(part)
        if size > _MAX_BYTES:
          raise answers.Fault(
            413, f"the body has more than {_MAX_BYTES} bytes",
            "request_too_large",
          )  # fmt: skip
  except TimeoutError:
    raise _slow(_BODY_S) from None
  try:
    return form.model_validate_json(b"".join(parts))
  except pydantic.ValidationError as raised:
    field, told = schema.faults(raised)
    raise answers.Fault(400, told, "invalid_request_error", field) from raised


def error(
  fault: answers.Fault, tell: Callable | None = None
) -> responses.JSONResponse:
  """A fault as an answer, in OpenAI's form unless there is another."""
  headers = {}
  if fault.status in (429, 503):
    headers["Retry-After"] = str(_RETRY_AFTER_S)
  if fault.status in (408, 413):  # The rest of the body is not read.
    headers["Connection"] = "close"
  told = (tell or forms.error)(fault)
  if tell is not None:  # As Anthropic's services do, whose form it is.
    headers[_REQUEST_ID] = told["request_id"] = _new_id()
  return responses.JSONResponse(told, fault.status, headers)


def _new_id() -> str:
  return f"req_{uuid.uuid4().hex}"


def not_found(tell: Callable) -> dict[Any, Callable]:
  """What says that there is no such endpoint, by the status that it has.

  Args:
    tell: Makes the body below `/v1/messages`; see `error`.
  """

  async def handle(request: requests.Request, raised: Exception) -> Any:
    status = getattr(raised, "status_code", 404)
    code = "method_not_allowed" if status == 405 else "not_found"
    path = request.url.path
    fault = answers.Fault(status, f"there is no {request.method} {path}", code)
    found = error(fault, tell if _MESSAGES in f"{path}/" else None)
    found.headers.update(getattr(raised, "headers", None) or {})
    return found

  return {404: handle, 405: handle}


async def unless_gone(request: requests.Request, work: Any) -> Any:
  """What some work gives, which ends when the client hangs up.

  Raises:
    Gone: it did.
  """
  over = False
  loop = asyncio.get_running_loop()
  gone = asyncio.ensure_future(_hung_up(request))

  def end(_):
    if not over:  # The work may have ended since this was scheduled.
      limit.reschedule(loop.time())

  try:
    async with asyncio.timeout(None) as limit:
      gone.add_done_callback(end)
      try:
        return await work
      finally:
        over = True
        gone.cancel()
  except TimeoutError:
    if limit.expired():
      raise Gone from None
    raise


async def _hung_up(request: requests.Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass


async def events(
  form: forms.Form, texts: AsyncIterator[str], first: str
) -> AsyncIterator[str]:
  """The events of a stream."""
  async with contextlib.aclosing(texts):
    try:
      for data in (*form.begin(), *form.piece(first)):
        yield form.event_text(data)
      async for text in texts:
        for data in form.piece(text):
          yield form.event_text(data)
    except answers.Fault as fault:
      yield form.event_text(form.fault(fault))
      return
  for data in form.end():
    yield form.event_text(data)
  yield form.ending
