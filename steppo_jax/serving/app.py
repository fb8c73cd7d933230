"""The policy server: OpenAI's chat and text completions, and token ids.

`/v1/chat/completions`, `/v1/completions`, `/v1/models`,
`/inference/v1/generate` (token ids in and out, as verifiers and vLLM speak it),
`/health` and `/metrics` (Prometheus). With sessions, all of these are also
below `/sessions/ID`, and what a session's key asks for is recorded; see
`session_app`.
"""

import asyncio
import contextlib
import hmac
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import prometheus_client
import prometheus_client.core
from starlette import applications, requests, responses, routing

from steppo_jax.serving import (
  answers,
  forms,
  http,
  messages,
  openapi,
  schema,
  session_app,
  session_keys,
  session_schema,
  turns,
)
from steppo_jax.serving import session as session_lib
from steppo_jax.serving import sessions as sessions_lib
from steppo_jax.serving.engines import weights as weights_lib

# What the endpoints take.
_BODIES = {
  "/v1/chat/completions": schema.ChatRequest,
  "/v1/completions": schema.CompletionRequest,
  "/inference/v1/generate": schema.GenerateRequest,
  "/v1/messages": messages.MessagesRequest,
  "/v1/messages/count_tokens": messages.CountRequest,
  "/sessions": session_schema.Create,
  "/sessions/{session}/rewards": session_schema.Rewarded,
  "/sessions/{session}/labels": session_schema.Labelled,
  "/sessions/{session}/finish": session_schema.Finish,
  "/weights": weights_lib.Announced,
  "/weights/{digest}/load": weights_lib.Load,
}


def make(
  policy: answers.Policy,
  *,
  api_key: str | None = None,
  sessions: sessions_lib.Sessions | None = None,
  weights: weights_lib.Weights | None = None,
) -> Any:
  """The application.

  Args:
    policy: What it serves.
    api_key: What clients have to send as `Authorization: Bearer KEY`; None lets
      everyone in.
    sessions: Records what sessions ask for; None has none.
    weights: Takes in other weights; None lets nobody change them.
  """
  served = _Served(policy, api_key, sessions, weights)
  routes = [
    served.route("POST", "/v1/chat/completions", served.chat),
    served.route("POST", "/v1/completions", served.completion),
    served.route("POST", "/inference/v1/generate", served.generate),
    served.route("POST", "/v1/messages", served.messages, messages.error),
    served.route(
      "POST", "/v1/messages/count_tokens", served.count, messages.error
    ),
    served.route("GET", "/v1/models", served.models),
    served.route("GET", "/v1/models/{name:path}", served.model),
  ]
  lifespan = None
  if sessions is not None:
    own = session_app.Handlers(sessions)
    routes = [
      *routes,
      served.route("POST", "/sessions", own.create),
      served.route("GET", "/sessions/{session}", own.show),
      served.route("POST", "/sessions/{session}/rewards", own.reward),
      served.route("POST", "/sessions/{session}/labels", own.label),
      served.route("POST", "/sessions/{session}/finish", own.finish),
      routing.Mount("/sessions/{session}", routes=routes),
    ]
    lifespan = session_app.lifespan(sessions)
  if weights is not None:
    routes += weights.routes(served.route)
  routes += [
    routing.Route("/health", served.health, methods=["GET"]),
    routing.Route("/metrics", served.metrics, methods=["GET"]),
  ]
  described = openapi.of(routes, _BODIES)
  tell = lambda _: responses.JSONResponse(described)
  return applications.Starlette(
    routes=[*routes, routing.Route("/openapi.json", tell, methods=["GET"])],
    exception_handlers=http.not_found(messages.error),
    lifespan=lifespan,
  )


class _Served:
  """The handlers of one policy."""

  def __init__(
    self,
    policy: answers.Policy,
    api_key: str | None,
    sessions: sessions_lib.Sessions | None,
    weights: weights_lib.Weights | None,
  ):
    self._policy = policy
    self._api_key = api_key
    self._sessions = sessions
    self._weights = weights
    self._names = session_app.Names(sessions)
    self._created = int(time.time())

  def route(
    self,
    method: str,
    path: str,
    handler: Callable,
    tell: Callable | None = None,
  ) -> routing.Route:
    """A handler for whoever is let in, whose faults are answers."""

    async def handle(request: requests.Request) -> responses.Response:
      request.state.opened = await self._let_in(request)
      return await handler(request)

    return routing.Route(path, http.answered(handle, tell), methods=[method])

  async def _let_in(
    self, request: requests.Request
  ) -> session_keys.Opened | None:
    """The session that a client asks for, None for the server itself.

    Raises:
      answers.Fault: it has sent neither its key nor the server's, or no session
        of the name can begin.
    """
    given = http.key(request)
    path = request.path_params.get("session")
    header = request.headers.get("x-session-id")
    if self._sessions is not None:
      keys, has = self._sessions.keys, self._sessions.has
      opened = keys.sent(given, path, header, has)
      if opened is not None:
        return opened
    if (path or header) is None or self._sessions is None:
      self._check_key(given, "server's")
      return None
    if not self._sessions.limits.by_header:
      raise _no_key("session's")
    self._check_key(given, "session's")
    return await self._names.opened(request)

  def _check_key(self, given: str, whose: str) -> None:
    wanted = self._api_key
    if wanted is not None and not hmac.compare_digest(
      given.encode(), wanted.encode()
    ):
      raise _no_key(whose)

  def _session(self, request: requests.Request) -> session_lib.Session | None:
    """The session that a call belongs to, None for none.

    Raises:
      answers.Fault: it is not under way here.
    """
    opened = request.state.opened
    return opened and session_app.live(self._sessions, opened)

  def _check_model(self, name: str | None) -> None:
    if name not in (None, self._policy.name):
      raise answers.Fault(
        404,
        f"the model {name!r} is not served here, {self._policy.name!r} is",
        "model_not_found",
        "model",
      )

  async def chat(self, request: requests.Request) -> responses.Response:
    """`POST /v1/chat/completions`."""
    session = self._session(request)
    asked = await http.read(request, schema.ChatRequest)
    return await self._converse(request, session, asked, forms.Chat)

  async def messages(self, request: requests.Request) -> responses.Response:
    """`POST /v1/messages`."""
    session = self._session(request)
    asked = (await http.read(request, messages.MessagesRequest)).chat()
    return await self._converse(request, session, asked, messages.Messages)

  async def count(self, request: requests.Request) -> responses.Response:
    """`POST /v1/messages/count_tokens`."""
    asked = (await http.read(request, messages.CountRequest)).chat()
    ids, _, _ = self._policy.chat_ids(asked.messages, _tools(asked))
    return responses.JSONResponse({"input_tokens": len(ids)})

  async def _converse(
    self,
    request: requests.Request,
    session: session_lib.Session | None,
    asked: schema.ChatRequest,
    kind: type[forms.Chat],
  ) -> responses.Response:
    """Answers a conversation, in one of the forms."""
    tools = _tools(asked)
    if session is not None:
      _refuse_other(asked, asked.forced)
      # Agents name whatever model they were written for.
      turn = await self._sessions.ask(
        session, asked, tools, **session_app.told(request)
      )
      answer = self._replayed(turn)
      form = kind(
        self._policy, asked, answer, turn.wanted, tools=tools,
        opened=turn.plan.opened, name=_name(session, turn),
      )  # fmt: skip
      return await _send(request, form, turn.replay(), turn.was_delivered)
    self._check_model(asked.model)
    prompt_ids, stop_ids, opened = self._policy.chat_ids(asked.messages, tools)
    before = answers.begun(self._policy, asked.forced, tools, opened)
    if before:
      more = self._policy.tokenizer.encode_template(before)
      prompt_ids, opened = np.append(prompt_ids, more), False
    field = "max_tokens" if asked.max_tokens else "max_completion_tokens"
    wanted = self._policy.request(
      prompt_ids, limit=asked.limit, temperature=asked.temperature,
      seed=asked.seed, stop_ids=stop_ids, limit_field=field,
      top_p=asked.top_p,
    )  # fmt: skip
    answer = answers.Answer(
      self._policy.tokenizer, stop_ids, asked.stops, before
    )
    form = kind(self._policy, asked, answer, wanted, tools=tools, opened=opened)
    return await _send(request, form, self._policy.scheduler.answer(wanted))

  def _replayed(self, turn: turns.Turn) -> answers.Answer:
    return answers.Answer(
      self._policy.tokenizer, turn.plan.stop_ids, turn.settings.stops
    )

  async def completion(self, request: requests.Request) -> responses.Response:
    """`POST /v1/completions`."""
    session = self._session(request)
    asked = await http.read(request, schema.CompletionRequest)
    prompt_ids = asked.prompt
    if isinstance(prompt_ids, str):
      prompt_ids = self._policy.text_ids(prompt_ids)
    stop_ids = self._policy.tokenizer.stop_ids
    if session is not None:
      _refuse_other(asked)
      turn = await self._sessions.ask_ids(
        session, prompt_ids, _settings(asked), stop_ids,
        **session_app.told(request),
      )  # fmt: skip
      form = forms.Completion(
        self._policy, asked, self._replayed(turn), turn.wanted,
        name=_name(session, turn),
      )  # fmt: skip
      return await _send(request, form, turn.replay(), turn.was_delivered)
    self._check_model(asked.model)
    wanted = self._policy.request(
      prompt_ids, limit=asked.limit, temperature=asked.temperature,
      seed=asked.seed, stop_ids=stop_ids, top_p=asked.top_p,
    )  # fmt: skip
    answer = answers.Answer(self._policy.tokenizer, stop_ids, asked.stops)
    form = forms.Completion(self._policy, asked, answer, wanted)
    return await _send(request, form, self._policy.scheduler.answer(wanted))

  async def generate(self, request: requests.Request) -> responses.Response:
    """`POST /inference/v1/generate`."""
    session = self._session(request)
    asked = await http.read(request, schema.GenerateRequest)
    params = asked.sampling_params
    stop_ids = (
      *self._policy.tokenizer.stop_ids, *(params.stop_token_ids or ())
    )  # fmt: skip
    delivered = lambda: None
    if session is not None:
      _refuse_other(params)
      turn = await self._sessions.ask_ids(
        session, asked.token_ids,
        turns.Settings(params.max_tokens, params.temperature, params.seed),
        stop_ids, **session_app.told(request),
      )  # fmt: skip
      wanted, pieces = turn.wanted, turn.replay()
      name, delivered = _name(session, turn), turn.was_delivered
    else:
      self._check_model(asked.model)
      wanted = self._policy.request(
        asked.token_ids, limit=params.max_tokens,
        temperature=params.temperature, seed=params.seed, stop_ids=stop_ids,
        key=params.key, top_p=params.top_p,
      )  # fmt: skip
      pieces = self._policy.scheduler.answer(wanted)
      name = uuid.uuid4().hex
    answer = answers.Answer(self._policy.tokenizer, stop_ids, ())
    await http.unless_gone(request, answers.whole(pieces, answer))
    delivered()
    digest = self._weights and self._weights.digest_of(answer.version)
    return responses.JSONResponse(forms.generated(wanted, answer, name, digest))

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
    text = await asyncio.to_thread(prometheus_client.generate_latest, registry)
    return responses.Response(
      text, media_type=prometheus_client.CONTENT_TYPE_LATEST
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
    if self._sessions is not None:
      gauge = core.GaugeMetricFamily(
        "steppo_episodes", "Episodes of the pool by state.", labels=["state"]
      )
      for name, value in self._sessions.counts().items():
        gauge.add_metric([name], value)
      yield gauge


def _no_key(whose: str) -> answers.Fault:
  return answers.Fault(
    401, f"send the {whose} key as 'Authorization: Bearer KEY'",
    "invalid_api_key",
  )  # fmt: skip


def _refuse_other(asked: Any, forced: str | None = None) -> None:
  """Refuses what would be sampled otherwise than it is trained.

  Raises:
    answers.Fault: it would.
  """
  if asked.top_p not in (None, 1.0):
    raise answers.Fault(
      400, f"top_p={asked.top_p}: what a session records is sampled from the "
      "whole softmax, as the learner computes it", "invalid_request_error",
      "top_p",
    )  # fmt: skip
  if forced is not None:
    raise answers.Fault(
      400, "tool_choice: a session records what the policy chose itself; use "
      "'auto' or 'none'", "invalid_request_error", "tool_choice",
    )  # fmt: skip


def _tools(asked: schema.ChatRequest) -> list[schema.Tool] | None:
  """What may be called."""
  return None if asked.tool_choice == "none" else asked.tools


def _settings(asked: schema.CompletionRequest) -> turns.Settings:
  return turns.Settings(asked.limit, asked.temperature, asked.seed, asked.stops)


def _name(session: session_lib.Session, turn: turns.Turn) -> str:
  """Names an answer; the same whenever it is asked for."""
  return uuid.uuid5(uuid.NAMESPACE_URL, f"{session.uid}/{turn.number}").hex


async def _send(
  request: requests.Request,
  form: forms.Form,
  pieces: Any,
  delivered: Callable[[], None] = lambda: None,
) -> responses.Response:
  """An answer at once or in events.

  Args:
    request: Who is answered.
    form: How.
    pieces: What is sampled.
    delivered: Called when all of it was sent.
  """
  if not form.asked.stream:
    await http.unless_gone(request, answers.whole(pieces, form.answer))
    delivered()
    return responses.JSONResponse(form.whole())
  texts = answers.stream(pieces, form.answer)
  # What is wrong with the request is known before the first event.
  first = await http.unless_gone(request, anext(texts))

  async def events():
    async with contextlib.aclosing(http.events(form, texts, first)) as found:
      async for event in found:
        yield event
    if form.answer.finish is not None:
      delivered()

  return responses.StreamingResponse(events(), media_type="text/event-stream")
