"""The policy server: OpenAI's chat and text completions, and token ids.

`/v1/chat/completions`, `/v1/completions`, `/v1/models`,
`/inference/v1/generate` (token ids in and out, as verifiers and vLLM speak it),
`/health` and `/metrics` (Prometheus).
"""

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import prometheus_client
import prometheus_client.core
import pydantic
from starlette import applications, requests, responses, routing

from steppo_jax.serving import answers, forms, schema

# A longer body is refused.
_MAX_BYTES = 1 << 25
_RETRY_AFTER_S = 1


class _Gone(Exception):
  """The client has hung up."""


def make(policy: answers.Policy, *, api_key: str | None = None) -> Any:
  """The application.

  Args:
    policy: What it serves.
    api_key: What clients have to send as `Authorization: Bearer KEY`; None lets
      everyone in.
  """
  served = _Served(policy, api_key)
  post = lambda path, handler: routing.Route(
    path, served.answered(handler), methods=["POST"]
  )
  get = lambda path, handler: routing.Route(
    path, served.answered(handler), methods=["GET"]
  )
  return applications.Starlette(
    routes=[
      post("/v1/chat/completions", served.chat),
      post("/v1/completions", served.completion),
      post("/inference/v1/generate", served.generate),
      get("/v1/models", served.models),
      get("/v1/models/{name:path}", served.model),
      routing.Route("/health", served.health, methods=["GET"]),
      routing.Route("/metrics", served.metrics, methods=["GET"]),
    ],
    exception_handlers={404: _not_found, 405: _not_found},
  )


def _error(fault: answers.Fault) -> responses.JSONResponse:
  kinds = {401: "authentication_error", 429: "rate_limit_error"}
  kind = "server_error" if fault.status >= 500 else "invalid_request_error"
  body = {
    "message": fault.message,
    "type": kinds.get(fault.status, kind),
    "param": fault.field,
    "code": fault.code,
  }
  headers = (
    {"Retry-After": str(_RETRY_AFTER_S)} if fault.status == 429 else None
  )
  return responses.JSONResponse({"error": body}, fault.status, headers)


async def _not_found(request: requests.Request, error: Exception) -> Any:
  status = getattr(error, "status_code", 404)
  message = f"there is no {request.method} {request.url.path}"
  return _error(answers.Fault(status, message, "not_found"))


class _Served:
  """The handlers of one policy."""

  def __init__(self, policy: answers.Policy, api_key: str | None):
    self._policy = policy
    self._api_key = api_key
    self._created = int(time.time())

  def answered(self, handler: Callable) -> Callable:
    """A handler whose faults are answers."""

    async def handle(request: requests.Request) -> responses.Response:
      try:
        self._let_in(request)
        return await handler(request)
      except answers.Fault as fault:
        return _error(fault)
      except _Gone:
        return responses.Response(status_code=499)

    return handle

  def _let_in(self, request: requests.Request) -> None:
    if self._api_key is None:
      return
    given = request.headers.get("authorization", "")
    wanted = f"Bearer {self._api_key}"
    if not hmac.compare_digest(given.encode(), wanted.encode()):
      raise answers.Fault(
        401, "send the server's key as 'Authorization: Bearer KEY'",
        "invalid_api_key",
      )  # fmt: skip

  async def _read(self, request: requests.Request, form: type) -> Any:
    """The body of a request in its form."""
    parts, size = [], 0
    try:
      async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > _MAX_BYTES:
          raise answers.Fault(
            413, f"the body has more than {_MAX_BYTES} bytes",
            "request_too_large",
          )  # fmt: skip
    except requests.ClientDisconnect:
      raise _Gone from None
    try:
      found = form.model_validate_json(b"".join(parts))
    except pydantic.ValidationError as error:
      field, told = schema.faults(error)
      raise answers.Fault(400, told, "invalid_request_error", field) from error
    if found.model not in (None, self._policy.name):
      raise answers.Fault(
        404,
        f"the model {found.model!r} is not served here, {self._policy.name!r} "
        "is",
        "model_not_found",
        "model",
      )
    return found

  async def chat(self, request: requests.Request) -> responses.Response:
    """`POST /v1/chat/completions`."""
    asked = await self._read(request, schema.ChatRequest)
    tools = None if asked.tool_choice == "none" else asked.tools
    prompt_ids, stop_ids, opened = self._policy.chat_ids(asked.messages, tools)
    field = "max_tokens" if asked.max_tokens else "max_completion_tokens"
    wanted = self._policy.request(
      prompt_ids, limit=asked.limit, temperature=asked.temperature,
      seed=asked.seed, stop_ids=stop_ids, limit_field=field,
    )  # fmt: skip
    answer = answers.Answer(self._policy.tokenizer, stop_ids, asked.stops)
    form = forms.Chat(
      self._policy, asked, answer, wanted, tools=tools, opened=opened
    )
    return await self._send(request, form)

  async def completion(self, request: requests.Request) -> responses.Response:
    """`POST /v1/completions`."""
    asked = await self._read(request, schema.CompletionRequest)
    prompt_ids = asked.prompt
    if isinstance(prompt_ids, str):
      prompt_ids = self._policy.text_ids(prompt_ids)
    stop_ids = self._policy.tokenizer.stop_ids
    wanted = self._policy.request(
      prompt_ids, limit=asked.limit, temperature=asked.temperature,
      seed=asked.seed, stop_ids=stop_ids,
    )  # fmt: skip
    answer = answers.Answer(self._policy.tokenizer, stop_ids, asked.stops)
    return await self._send(
      request, forms.Completion(self._policy, asked, answer, wanted)
    )

  async def generate(self, request: requests.Request) -> responses.Response:
    """`POST /inference/v1/generate`."""
    asked = await self._read(request, schema.GenerateRequest)
    params = asked.sampling_params
    stop_ids = (
      *self._policy.tokenizer.stop_ids, *(params.stop_token_ids or ())
    )  # fmt: skip
    wanted = self._policy.request(
      asked.token_ids, limit=params.max_tokens, temperature=params.temperature,
      seed=params.seed, stop_ids=stop_ids,
    )  # fmt: skip
    answer = answers.Answer(self._policy.tokenizer, stop_ids, ())
    await _unless_gone(request, answers.whole(self._policy, wanted, answer))
    content = [
      {"token": f"token_id:{i}", "logprob": logp, "top_logprobs": []}
      for i, _, logp in answer.tokens(0)
    ]
    return responses.JSONResponse({
      "request_id": f"gen-{uuid.uuid4().hex}",
      "choices": [{
        "index": 0,
        "token_ids": answer.ids,
        "logprobs": {"content": content},
        "finish_reason": answer.finish,
      }],
      "prompt_token_ids": wanted.prompt_ids.tolist(),
      "weight_version": answer.version,
    })  # fmt: skip

  async def _send(self, request, form: forms.Form) -> responses.Response:
    """An answer at once or in events."""
    if not form.asked.stream:
      work = answers.whole(self._policy, form.wanted, form.answer)
      await _unless_gone(request, work)
      return responses.JSONResponse(form.whole())
    texts = answers.stream(self._policy, form.wanted, form.answer)
    # What is wrong with the request is known before the first event.
    first = await _unless_gone(request, anext(texts))
    return responses.StreamingResponse(
      _events(form, texts, first), media_type="text/event-stream"
    )

  async def models(self, request: requests.Request) -> responses.Response:
    """`GET /v1/models`."""
    return responses.JSONResponse({"object": "list", "data": [self._card()]})

  async def model(self, request: requests.Request) -> responses.Response:
    """`GET /v1/models/NAME`."""
    name = request.path_params["name"]
    if name != self._policy.name:
      raise answers.Fault(
        404, f"the model {name!r} is not served here", "model_not_found"
      )
    return responses.JSONResponse(self._card())

  def _card(self) -> dict[str, Any]:
    return {
      "id": self._policy.name,
      "object": "model",
      "created": self._created,
      "owned_by": "steppo_jax",
      "max_model_len": self._policy.context,
    }

  async def health(self, request: requests.Request) -> responses.Response:
    """`GET /health`."""
    alive = self._policy.scheduler.alive
    return responses.JSONResponse(
      {"status": "ok" if alive else "failed"}, 200 if alive else 503
    )

  async def metrics(self, request: requests.Request) -> responses.Response:
    """`GET /metrics`."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(self)
    return responses.Response(
      prometheus_client.generate_latest(registry),
      media_type=prometheus_client.CONTENT_TYPE_LATEST,
    )

  def collect(self) -> Iterable[Any]:
    """What the server has done and does, for Prometheus."""
    scheduler = self._policy.scheduler
    core = prometheus_client.core
    for name in ("answered", "cancelled", "refused"):
      yield core.CounterMetricFamily(
        f"steppo_requests_{name}", f"Requests {name}.",
        value=scheduler.counts[name],
      )  # fmt: skip
    for name in ("prompt", "read", "sampled"):
      yield core.CounterMetricFamily(
        f"steppo_tokens_{name}", f"Tokens, {name}.",
        value=scheduler.counts[name],
      )  # fmt: skip
    for name, value in scheduler.load.items():
      yield core.GaugeMetricFamily(
        f"steppo_requests_{name}", f"Requests {name}.", value=value
      )


async def _unless_gone(request: requests.Request, work: Any) -> Any:
  """What some work gives, which ends when the client hangs up.

  Raises:
    _Gone: it did.
  """
  task = asyncio.ensure_future(work)
  gone = asyncio.ensure_future(_hung_up(request))
  try:
    await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise _Gone
    return task.result()
  finally:
    for one in (task, gone):
      one.cancel()
    await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: requests.Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass


async def _events(
  form: forms.Form, texts: AsyncIterator[str], first: str
) -> AsyncIterator[str]:
  """The events of a stream."""
  event = lambda data: f"data: {json.dumps(data)}\n\n"
  async with contextlib.aclosing(texts):
    try:
      yield event(form.begin())
      yield event(form.piece(first))
      async for text in texts:
        yield event(form.piece(text))
    except answers.Fault as fault:
      error = {"message": fault.message, "code": fault.code}
      yield event({"error": error})
      return
  for data in form.end():
    yield event(data)
  yield "data: [DONE]\n\n"
