"""The answers of OpenAI's endpoints, whole and in events."""

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from steppo_jax import types
from steppo_jax.serving import answers, schema


def error(fault: answers.Fault) -> dict[str, Any]:
  """A fault in OpenAI's form."""
  kinds = {401: "authentication_error", 429: "rate_limit_error"}
  kind = "server_error" if fault.status >= 500 else "invalid_request_error"
  told = {
    "message": fault.message,
    "type": kinds.get(fault.status, kind),
    "param": fault.field,
    "code": fault.code,
  }
  return {"error": told}


class Form:
  """One answer in one of OpenAI's forms, whole or in pieces."""

  # What the whole answer and its events are called, and how ids begin.
  object: str
  event: str
  prefix: str
  # Behind the last event.
  ending = "data: [DONE]\n\n"

  def __init__(
    self,
    policy: answers.Policy,
    asked: schema.ChatRequest | schema.CompletionRequest,
    answer: answers.Answer,
    wanted: types.Request,
    *,
    name: str | None = None,
  ):
    """Nothing is told yet.

    Args:
      policy: What answers.
      asked: What the client sent.
      answer: What is sampled; it grows.
      wanted: What the engine was asked for.
      name: Names the answer and its calls; None for a name of its own.
    """
    self.policy, self.asked = policy, asked
    self.answer, self.wanted = answer, wanted
    self._name = name or uuid.uuid4().hex
    self._id = f"{self.prefix}-{self._name}"
    self._created = int(time.time())
    self._told = 0

  def frame(self, choices: list, name: str) -> dict[str, Any]:
    """What is around the choices."""
    return {
      "id": self._id,
      "object": name,
      "created": self._created,
      "model": self.policy.name,
      "choices": choices,
    }

  def event_text(self, data: dict[str, Any]) -> str:
    """An event as it is sent."""
    return f"data: {json.dumps(data)}\n\n"

  def fault(self, fault: answers.Fault) -> dict[str, Any]:
    """What ends a stream that fails."""
    return error(fault)

  def usage(self) -> dict[str, int]:
    """Numbers of tokens."""
    prompt, sampled = len(self.wanted.prompt_ids), len(self.answer.ids)
    return {
      "prompt_tokens": prompt,
      "completion_tokens": sampled,
      "total_tokens": prompt + sampled,
    }

  def new_tokens(self) -> list[tuple[int, str, float]]:
    """The tokens that were not told yet."""
    found = self.answer.tokens(self._told)
    self._told += len(found)
    return found

  def ids(self, tokens) -> dict[str, Any]:
    """The ids of some tokens, where they are asked for."""
    if not self.asked.return_token_ids:
      return {}
    return {"token_ids": [i for i, _, _ in tokens]}

  def prompt_ids(self) -> dict[str, Any]:
    """The ids of the prompt, where they are asked for."""
    if not self.asked.return_token_ids:
      return {}
    return {"prompt_token_ids": self.wanted.prompt_ids.tolist()}

  def last(self) -> Iterable[dict[str, Any]]:
    """The number of tokens, where a stream is to tell it."""
    if self.asked.with_usage:
      yield {**self.frame([], self.event), "usage": self.usage()}


class Chat(Form):
  """`chat.completion`."""

  object = "chat.completion"
  event = "chat.completion.chunk"
  prefix = "chatcmpl"

  def __init__(
    self,
    policy: answers.Policy,
    asked: schema.ChatRequest,
    answer: answers.Answer,
    wanted: types.Request,
    *,
    tools: Sequence[schema.Tool] | None,
    opened: bool,
    name: str | None = None,
  ):
    """See `answers.called` for tools and `opened`."""
    super().__init__(policy, asked, answer, wanted, name=name)
    self._tools, self._opened = tools, opened

  def _logprobs(self, tokens) -> dict[str, Any] | None:
    if not self.asked.logprobs:
      return None
    return {
      "content": [
        {
          "token": text,
          "logprob": logp,
          "bytes": list(text.encode("utf-8", "surrogatepass")),
          "top_logprobs": [],
        }
        for _, text, logp in tokens
      ],
      "refusal": None,
    }

  def _calls(self) -> list[dict[str, Any]]:
    found = answers.called(self.policy, self.answer, self._tools, self._opened)
    return [
      {
        "id": f"call_{self._name[:20]}{k:04}",
        "type": "function",
        "function": {
          "name": call.name,
          "arguments": json.dumps(dict(call.arguments), ensure_ascii=False),
        },
      }
      for k, call in enumerate(found)
    ]

  def whole(self) -> dict[str, Any]:
    """The answer at once."""
    calls, tokens = self._calls(), self.new_tokens()
    message = {
      "role": "assistant",
      "content": None if calls else self.answer.said,
      "refusal": None,
    }
    if calls:
      message["tool_calls"] = calls
    choice = {
      "index": 0,
      "message": message,
      "logprobs": self._logprobs(tokens),
      "finish_reason": "tool_calls" if calls else self.answer.finish,
      **self.ids(tokens),
    }
    return {
      **self.frame([choice], self.object),
      "usage": self.usage(),
      **self.prompt_ids(),
    }

  def _chunk(self, delta, tokens=(), finish=None) -> dict[str, Any]:
    choice = {
      "index": 0,
      "delta": delta,
      "logprobs": self._logprobs(tokens) if tokens else None,
      "finish_reason": finish,
      **self.ids(tokens),
    }
    return self.frame([choice], self.event)

  def begin(self) -> list[dict[str, Any]]:
    """The first events."""
    delta = {"role": "assistant", "content": ""}
    return [{**self._chunk(delta), **self.prompt_ids()}]

  def piece(self, text: str) -> list[dict[str, Any]]:
    """Some more text; none of an answer that may be calls of tools."""
    delta = {} if self._tools else {"content": text}
    return [self._chunk(delta, self.new_tokens())]

  def end(self) -> Iterable[dict[str, Any]]:
    """The last events."""
    calls = self._calls()
    if calls:
      numbered = [{"index": k, **call} for k, call in enumerate(calls)]
      yield self._chunk({"tool_calls": numbered})
    elif self._tools:
      yield self._chunk({"content": self.answer.said})
    yield self._chunk({}, finish="tool_calls" if calls else self.answer.finish)
    yield from self.last()


class Completion(Form):
  """`text_completion`."""

  object = event = "text_completion"
  prefix = "cmpl"

  def _choice(self, text, tokens, finish) -> dict[str, Any]:
    logprobs = None
    if self.asked.logprobs is not None:
      logprobs = {
        "tokens": [text for _, text, _ in tokens],
        "token_logprobs": [logp for _, _, logp in tokens],
        "top_logprobs": None,
        "text_offset": [],
      }
    return {
      "index": 0,
      "text": text,
      "logprobs": logprobs,
      "finish_reason": finish,
      **self.ids(tokens),
    }

  def whole(self) -> dict[str, Any]:
    """The answer at once."""
    tokens = self.new_tokens()
    choice = self._choice(self.answer.text, tokens, self.answer.finish)
    choice |= self.prompt_ids()
    return {**self.frame([choice], self.object), "usage": self.usage()}

  def begin(self) -> list[dict[str, Any]]:
    """The first events."""
    choice = self._choice("", (), None) | self.prompt_ids()
    return [self.frame([choice], self.event)]

  def piece(self, text: str) -> list[dict[str, Any]]:
    """Some more text."""
    choice = self._choice(text, self.new_tokens(), None)
    return [self.frame([choice], self.event)]

  def end(self) -> Iterable[dict[str, Any]]:
    """The last events."""
    yield self.frame([self._choice("", (), self.answer.finish)], self.event)
    yield from self.last()


def generated(
  wanted: types.Request,
  answer: answers.Answer,
  name: str,
  digest: str | None,
) -> dict[str, Any]:
  """The answer of `/inference/v1/generate`: token ids.

  Args:
    wanted: What the engine was asked for.
    answer: All of what was sampled.
    name: Names the answer.
    digest: Names the weights that sampled it, beside their version.
  """
  content = [
    {"token": f"token_id:{i}", "token_id": i, "logprob": logp,
     "top_logprobs": []}
    for i, logp in zip(answer.ids, answer.logp, strict=True)
  ]  # fmt: skip
  return {
    "request_id": f"gen-{name}",
    "choices": [
      {
        "index": 0,
        "token_ids": answer.ids,
        "logprobs": {"content": content},
        "finish_reason": answer.finish,
      }
    ],
    "prompt_token_ids": wanted.prompt_ids.tolist(),
    "weight_version": answer.version,
    "weight_digest": digest,
  }
