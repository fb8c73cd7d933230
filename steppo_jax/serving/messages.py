"""`/v1/messages`, as Anthropic's clients speak: read, and answered.

A request becomes the chat that OpenAI's clients would send, so that both are
answered, and recorded, in the same way. Sources: the package anthropic 2.14.0
as a client, and its types.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from steppo_jax.serving import answers, forms, schema

_STOPS = {"length": "max_tokens", "stop": "end_turn"}
_ERRORS = {
  401: "authentication_error", 404: "not_found_error", 413: "request_too_large",
  429: "rate_limit_error",
}  # fmt: skip


class _Form(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="ignore", strict=False)


class TextBlock(_Form):
  """Text."""

  type: Literal["text"]
  text: str


class ThinkingBlock(_Form):
  """A thought; the template tells which of them the model reads again."""

  type: Literal["thinking", "redacted_thinking"]
  thinking: str | None = None


class UseBlock(_Form):
  """A call of a tool."""

  type: Literal["tool_use"]
  id: str | None = None
  name: str
  input: schema.Object = {}


class ResultBlock(_Form):
  """What a tool gave."""

  type: Literal["tool_result"]
  tool_use_id: str
  content: str | list[TextBlock] = ""


Block = Annotated[
  TextBlock | ThinkingBlock | UseBlock | ResultBlock,
  Field(discriminator="type"),
]


class Message(_Form):
  """A message of a conversation."""

  role: Literal["user", "assistant"]
  content: str | list[Block]


class Tool(_Form):
  """A function that a model may call."""

  name: Annotated[str, Field(min_length=1)]
  description: str | None = None
  input_schema: schema.Object | None = None


class ToolChoice(_Form):
  """Which tools may be called."""

  type: Literal["auto", "none", "any", "tool"]
  name: str | None = None

  def chat(self) -> str | dict[str, Any]:
    """The same as a chat says it."""
    if self.type == "tool":
      return {"function": {"name": self.name or ""}}
    return "required" if self.type == "any" else self.type


class CountRequest(_Form):
  """`POST /v1/messages/count_tokens`."""

  model: str
  messages: Annotated[list[Message], Field(min_length=1)]
  system: str | list[TextBlock] | None = None
  tools: list[Tool] | None = None
  tool_choice: ToolChoice | None = None

  def chat(self, **more: Any) -> schema.ChatRequest:
    """The same as a chat."""
    told = [] if self.system is None else [_text("system", self.system)]
    for message in self.messages:
      read = _assistant if message.role == "assistant" else _user
      told += read(message.content)
    tools = [
      {
        "function": {
          "name": tool.name,
          "description": tool.description,
          "parameters": tool.input_schema,
        }
      }
      for tool in self.tools or ()
    ]
    return schema.ChatRequest(
      model=self.model, messages=told, tools=tools or None,
      tool_choice=self.tool_choice and self.tool_choice.chat(), **more,
    )  # fmt: skip


class MessagesRequest(CountRequest):
  """`POST /v1/messages`."""

  max_tokens: Annotated[int, Field(ge=1)]
  temperature: Annotated[float, Field(ge=0, le=1e4)] | None = None
  stop_sequences: schema.Stops | None = None
  stream: bool | None = None
  return_token_ids: bool | None = None
  seed: schema.Seed | None = None
  top_p: schema.TopP | None = None
  # Known, and refused unless they change nothing.
  top_k: Literal[0, -1] | None = None

  def chat(self) -> schema.ChatRequest:
    """The same as a chat."""
    return super().chat(
      max_tokens=self.max_tokens, temperature=self.temperature,
      stop=self.stop_sequences or None, stream=self.stream, seed=self.seed,
      return_token_ids=self.return_token_ids, top_p=self.top_p,
    )  # fmt: skip


def _joined(content: str | list[TextBlock]) -> str:
  if isinstance(content, str):
    return content
  return "".join(block.text for block in content)


def _text(role: str, content: str | list[TextBlock]) -> dict[str, Any]:
  return {"role": role, "content": _joined(content)}


def _assistant(content: str | list[Block]) -> list[dict[str, Any]]:
  if isinstance(content, str):
    return [_text("assistant", content)]
  texts = [block for block in content if isinstance(block, TextBlock)]
  calls = [
    {
      "id": block.id,
      "function": {"name": block.name, "arguments": json.dumps(block.input)},
    }
    for block in content
    if isinstance(block, UseBlock)
  ]
  thoughts = "\n".join(
    block.thinking
    for block in content
    if isinstance(block, ThinkingBlock) and block.thinking
  )
  return [
    _text("assistant", texts)
    | {"tool_calls": calls or None, "reasoning_content": thoughts or None}
  ]


def _user(content: str | list[Block]) -> list[dict[str, Any]]:
  """Results of tools are messages of their own, in their order."""
  if isinstance(content, str):
    return [_text("user", content)]
  told: list[dict[str, Any]] = []
  for block in content:
    if isinstance(block, ResultBlock):
      one = _text("tool", block.content)
      told.append(one | {"tool_call_id": block.tool_use_id})
    elif isinstance(block, TextBlock):
      if told and told[-1]["role"] == "user":
        told[-1]["content"] += block.text
      else:
        told.append(_text("user", [block]))
  return told or [_text("user", "")]


class Messages(forms.Chat):
  """`message`."""

  prefix = "msg"
  ending = ""

  def event_text(self, data: dict[str, Any]) -> str:
    """An event, whose name clients look at."""
    return f"event: {data['type']}\n{super().event_text(data)}"

  def fault(self, fault: answers.Fault) -> dict[str, Any]:
    """What ends a stream that fails."""
    return error(fault)

  def _message(self, content: list, reason: str | None) -> dict[str, Any]:
    return {
      "id": self._id,
      "type": "message",
      "role": "assistant",
      "model": self.policy.name,
      "content": content,
      "stop_reason": reason,
      "stop_sequence": self.answer.stopped_by,
      "usage": self.usage(),
    }

  def usage(self) -> dict[str, int]:
    """Numbers of tokens."""
    return {
      "input_tokens": len(self.wanted.prompt_ids),
      "output_tokens": len(self.answer.ids),
    }

  def _reason(self, calls: list) -> str:
    if calls:
      return "tool_use"
    if self.answer.stopped_by is not None:
      return "stop_sequence"
    return _STOPS[self.answer.finish]

  def _blocks(self) -> list[dict[str, Any]]:
    """The tool calls, as blocks."""
    return [
      {
        "type": "tool_use",
        "id": call["id"].replace("call_", "toolu_"),
        "name": call["function"]["name"],
        "input": json.loads(call["function"]["arguments"]),
      }
      for call in self._calls()
    ]

  def whole(self) -> dict[str, Any]:
    """The answer at once."""
    blocks = self._blocks()
    content = blocks or [{"type": "text", "text": self.answer.said}]
    return {
      **self._message(content, self._reason(blocks)),
      **self.prompt_ids(),
      **self.ids(self.new_tokens()),
    }

  def begin(self) -> list[dict[str, Any]]:
    """The first events."""
    message = {**self._message([], None), **self.prompt_ids()}
    first = [{"type": "message_start", "message": message}]
    if not self._tools:
      first.append(_begun(0, {"type": "text", "text": ""}))
    return first

  def piece(self, text: str) -> list[dict[str, Any]]:
    """Some more text; none of an answer that may be calls of tools."""
    if self._tools or not text:
      return []
    return [_delta(0, {"type": "text_delta", "text": text})]

  def end(self) -> Iterable[dict[str, Any]]:
    """The last events."""
    blocks = self._blocks()
    if self._tools and not blocks:
      yield _begun(0, {"type": "text", "text": ""})
      yield _delta(0, {"type": "text_delta", "text": self.answer.said})
    if not blocks:
      yield {"type": "content_block_stop", "index": 0}
    for index, block in enumerate(blocks):
      yield _begun(index, block | {"input": {}})
      text = json.dumps(block["input"], ensure_ascii=False)
      yield _delta(index, {"type": "input_json_delta", "partial_json": text})
      yield {"type": "content_block_stop", "index": index}
    yield {
      "type": "message_delta",
      "delta": {
        "stop_reason": self._reason(blocks),
        "stop_sequence": self.answer.stopped_by,
      },
      "usage": self.usage(),
      **self.ids(self.new_tokens()),
    }
    yield {"type": "message_stop"}


def _begun(index: int, block: dict[str, Any]) -> dict[str, Any]:
  return {"type": "content_block_start", "index": index, "content_block": block}


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
  return {"type": "content_block_delta", "index": index, "delta": delta}


def error(fault: answers.Fault) -> dict[str, Any]:
  """A fault in Anthropic's form."""
  kind = "api_error" if fault.status >= 500 else "invalid_request_error"
  told = {
    "type": _ERRORS.get(fault.status, kind),
    "message": fault.message,
    "code": fault.code,
  }
  return {"type": "error", "error": told}
