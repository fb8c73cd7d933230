"""One answer of a served policy: from a request's text to text and tokens."""

import contextlib
import functools
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from steppo_jax import types
from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import base, chat, tool_call, tool_dialects
from steppo_jax.sampler import slot_requests
from steppo_jax.serving import scheduler as scheduler_lib
from steppo_jax.serving import schema

# Tokens without a whole character at their end that are decoded again.
_MOST_PENDING = 16


class Fault(Exception):
  """A request that is not answered, in words for whoever sent it.

  Attributes:
    status: Of HTTP.
    message: What is wrong and what to change.
    code: Name of the fault, as OpenAI names them.
    field: The field of the request that is wrong, or None.
  """

  def __init__(
    self, status: int, message: str, code: str, field: str | None = None
  ):
    super().__init__(message)
    self.status = status
    self.message = message
    self.code = code
    self.field = field


class Policy:
  """What is served: a model behind a scheduler, its tokenizer and template.

  Attributes:
    name: What clients call it.
    tokenizer: Of the model.
    context: Tokens that prompt and answer may have together.
    max_new_tokens: Longest answer in tokens.
    scheduler: Answers requests.
    dialect: How the model spells tool calls.
  """

  def __init__(
    self,
    name: str,
    tokenizer: types.Tokenizer,
    scheduler: scheduler_lib.Scheduler,
    *,
    context: int,
    max_new_tokens: int,
    dialect: tool_dialects.Dialect = "hermes",
  ):
    self.name = name
    self.tokenizer = tokenizer
    self.context = context
    self.max_new_tokens = max_new_tokens
    self.scheduler = scheduler
    self.dialect = dialect
    # Compiling a template takes longer than a step of a small model.
    self._chat = functools.lru_cache(maxsize=64)(self._make_chat)

  def _make_chat(self, tools: str | None) -> chat.Chat:
    options = {} if tools is None else {"tools": json.loads(tools)}
    return chat.Chat(self.tokenizer, where=self.name, **options)

  def template(self, tools: Sequence[schema.Tool] | None) -> chat.Chat:
    """The chat template, which tells what tools there are.

    Raises:
      Fault: the model has none.
    """
    if not getattr(self.tokenizer, "chat_template", None):
      raise Fault(
        400,
        f"the model {self.name} has no chat template: use /v1/completions",
        "invalid_request_error",
      )
    return self._chat(tools_text(tools) or None)

  def chat_ids(
    self,
    messages: Sequence[schema.Message],
    tools: Sequence[schema.Tool] | None,
  ) -> tuple[np.ndarray, tuple[int, ...], bool]:
    """The prompt of a conversation.

    Returns:
      [P] int32 ids, the tokens that end an answer, and whether the prompt ends
      inside of a thought.

    Raises:
      Fault: the model has no chat template, or it does not take the messages.
    """
    made = self.template(tools)
    try:
      prompt = prompted(
        made, [schema.as_template(message) for message in messages]
      )
    except ValueError as error:
      raise Fault(
        400, str(error), "invalid_request_error", "messages"
      ) from error
    return prompt.ids, made.stop_ids, self.opened(prompt)

  def opened(self, prompt: chat.Prompted) -> bool:
    """Whether a prompt ends inside of a thought."""
    behind = max((end for _, end, _ in prompt.spans), default=0)
    return envs_calls.opens_thought(self.tokenizer.decode(prompt.ids[behind:]))

  def text_ids(self, text: str) -> np.ndarray:
    """[P] int32 of a prompt that is text, with what begins every text."""
    prefix = np.array(getattr(self.tokenizer, "prefix_ids", ()), np.int32)
    return np.append(prefix, self.tokenizer.encode(text))

  def request(
    self,
    prompt_ids: Sequence[int] | np.ndarray,
    *,
    limit: int | None,
    temperature: float | None,
    seed: int | None,
    stop_ids: Sequence[int],
    limit_field: str = "max_tokens",
    key: Sequence[int] | None = None,
    top_p: float | None = None,
  ) -> types.Request:
    """What the engine is asked for; see `types.Request` for the `key`.

    Raises:
      Fault: an id is not in the vocabulary, it does not fit the context, or too
        many tokens end the answer.
    """
    ids = np.asarray(prompt_ids, np.int64)
    if len(ids) == 0:
      raise Fault(400, "the prompt is empty", "invalid_request_error", "prompt")
    if ids.max() >= self.tokenizer.num_ids:
      raise Fault(
        400,
        f"token id {ids.max()} is not in the vocabulary of "
        f"{self.tokenizer.num_ids}",
        "invalid_request_error",
        "prompt",
      )
    room = self.context - len(ids)
    if room < 1 or (limit or 1) > room:
      raise Fault(
        400,
        f"this model's context is {self.context} tokens: the prompt has "
        f"{len(ids)} and {limit or 1} were asked for",
        "context_length_exceeded",
        "messages" if room < 1 else limit_field,
      )
    ends = len({self.tokenizer.end_of_turn_id, *stop_ids})
    if ends > slot_requests.MAX_STOPS:
      raise Fault(
        400,
        f"stop_token_ids: with the model's own {ends} tokens end the answer, "
        f"at most {slot_requests.MAX_STOPS} may",
        "invalid_request_error",
        "stop_token_ids",
      )
    if key is None:
      number = secrets.randbits(64) if seed is None else seed % 2**64
      key = number >> 32, number & 0xFFFFFFFF
    return types.Request(
      "",
      ids.astype(np.int32),
      tuple(key),
      min(limit or room, self.max_new_tokens),
      1.0 if temperature is None else temperature,
      tuple(stop_ids),
      1.0 if top_p is None else top_p,
    )


def tools_text(tools: Sequence[schema.Tool] | None) -> str:
  """Tools as JSON; "" without any."""
  if not tools:
    return ""
  return json.dumps([tool.model_dump(exclude_none=True) for tool in tools])


def prompted(
  made: chat.Chat, messages: Sequence[dict[str, Any]]
) -> chat.Prompted:
  """The prompt of messages, without thoughts that the template refuses.

  That of gpt-oss takes none beside both a content and calls.

  Raises:
    ValueError: the template does not take the messages.
  """
  try:
    return made.prompt(messages)
  except ValueError:
    if all("reasoning_content" not in message for message in messages):
      raise
  return made.prompt(
    [
      {key: x for key, x in message.items() if key != "reasoning_content"}
      for message in messages
    ]
  )


class Answer:
  """An answer that grows.

  Attributes:
    ids: Tokens so far.
    logp: Their log-probabilities.
    text: What can be shown of them: whole characters, in front of a stop text.
    before: What the prompt begins the answer with.
    finish: "stop" or "length" when it has ended, None before. Tokens behind the
      one that completes a stop text are not taken.
    stopped_by: The stop text that ended it, None for none.
    version: Updates behind the weights, when it has ended.
  """

  def __init__(
    self,
    tokenizer: types.Tokenizer,
    stop_ids: Sequence[int],
    stops: Sequence[str],
    before: str = "",
  ):
    self._tokenizer = tokenizer
    self.before = before
    self._stop_ids = tuple(stop_ids)
    self._stops = stops
    # Decoded once: the text of tokens that later ones cannot change, and the
    # tokens behind them, whose last character may have bytes to come.
    self._decoded = ""
    self._pending: list[int] = []
    self.ids: list[int] = []
    self.logp: list[float] = []
    self.text = ""
    self.finish: str | None = None
    self.stopped_by: str | None = None
    self.version: int | None = None

  @property
  def said(self) -> str:
    """What the whole answer says."""
    return self.before + self.text

  def add(self, piece: scheduler_lib.Piece) -> str:
    """Takes more tokens; returns the text that can be shown since."""
    before = len(self.text)
    ids, logp = piece.ids.tolist(), piece.logp.tolist()
    self.version = piece.version
    # A stop text ends the answer at the very token that completes it.
    size = 1 if self._stops else max(len(ids), 1)
    for at in range(0, max(len(ids), 1), size):
      reason = piece.stop_reason if at + size >= len(ids) else None
      self._take(ids[at : at + size], logp[at : at + size], reason)
      if self.finish is not None:
        break
    return self.text[before:]

  def _take(self, ids, logp, reason) -> None:
    self.ids += ids
    self.logp += logp
    self.finish = reason
    whole = base.without_end(self._stop_ids, np.array(self.ids[-1:]))
    self._pending += ids if len(whole) else ids[:-1]
    tail = self._decode()
    text = self._decoded + tail
    # What is shown holds no beginning of a stop text.
    shown = len(self.text)
    found = [(k, s) for s in self._stops if (k := text.find(s, shown)) >= 0]
    if found:
      at, self.stopped_by = min(found)
      text, self.finish = text[:at], "stop"
    elif self.finish is None:
      # The last character may have bytes to come, and a stop text letters.
      text = text.rstrip("\ufffd")
      text = text[: len(text) - max(map(len, _begun(text, self._stops)))]
    self.text += text[len(self.text) :]

  def _decode(self) -> str:
    """The text of the pending tokens, of which those that are whole leave."""
    decode, pending = self._tokenizer.decode, self._pending
    text = decode(pending)
    settled = 0 if text.endswith("\ufffd") else len(pending)
    if not settled and len(pending) > _MOST_PENDING:
      # Bytes that are no text at all: cut where a character cannot go on.
      settled = next(
        at
        for at in range(len(pending) - 1, -1, -1)
        if not at
        or (
          decode(pending[at : at + 1])
          and decode(pending[:at]) + decode(pending[at:]) == text
        )
      )
    self._decoded += decode(pending[:settled])
    del pending[:settled]
    return text[len(text) - len(decode(pending)) :] if pending else ""

  def tokens(self, start: int) -> list[tuple[int, str, float]]:
    """Id, text and log-probability of each token from one on."""
    return [
      (i, self._tokenizer.decode([i]), logp)
      for i, logp in zip(self.ids[start:], self.logp[start:], strict=True)
    ]


def _begun(text: str, stops: Sequence[str]) -> list[str]:
  """The ends of a text with which a stop text begins; "" at least."""
  return [""] + [
    stop[:size]
    for stop in stops
    for size in range(1, len(stop))
    if text.endswith(stop[:size])
  ]


async def stream(
  pieces: AsyncIterator[scheduler_lib.Piece], answer: Answer
) -> AsyncIterator[str]:
  """The texts of an answer as they come; `answer` holds all of it.

  Args:
    pieces: What `scheduler.Scheduler.answer` gives.
    answer: Takes them in.

  Raises:
    Fault: too many requests wait, or the engine fails.
  """
  try:
    async with contextlib.aclosing(pieces):
      async for piece in pieces:
        yield answer.add(piece)
        if answer.finish is not None:
          return
  except scheduler_lib.Full as error:
    raise Fault(
      429, f"the server is busy: {error}", "rate_limit_exceeded"
    ) from error
  except ValueError as error:
    raise Fault(400, str(error), "invalid_request_error") from error
  except RuntimeError as error:
    raise Fault(503, str(error), "server_error") from error


async def whole(
  pieces: AsyncIterator[scheduler_lib.Piece], answer: Answer
) -> Answer:
  """The same when it has ended."""
  async with contextlib.aclosing(stream(pieces, answer)) as texts:
    async for _ in texts:
      pass
  return answer


def begun(
  policy: Policy,
  tool: str | None,
  tools: Sequence[schema.Tool] | None,
  opened: bool,
) -> str:
  """What an answer begins with that has to call a tool.

  It is part of the prompt: the policy goes on with the call's name, where there
  are several, and its arguments.

  Args:
    policy: How calls are spelt.
    tool: The tool, "" for any of them, None where none need be called.
    tools: What may be called.
    opened: Whether the prompt ends inside of a thought, which is then closed.

  Raises:
    Fault: there is no such tool.
  """
  if tool is None:
    return ""
  names = [one.function.name for one in tools or ()]
  if not names or (tool and tool not in names):
    raise Fault(
      400, f"tool_choice: {tool or 'any tool'!r} is none of {names}",
      "invalid_request_error", "tool_choice",
    )  # fmt: skip
  shown = [tool or names[0]] if tool or len(names) == 1 else ["a", "b"]
  try:
    spelt = [
      tool_dialects.spell(name, said, policy.dialect)
      for name in shown
      for said in ({"a": 1}, {"b": "c"})
    ]
  except ValueError as error:
    raise Fault(
      400, f"tool_choice: {error}", "invalid_request_error", "tool_choice"
    ) from error
  # Tokens may join what follows to these.
  each = zip(*spelt, strict=False)
  same = itertools.takewhile(lambda x: len({*x}) == 1, each)
  start = "".join(x[0] for x in same).rstrip(" {[\"'")
  return f"\n</think>\n\n{start}" if opened else start


def reading(
  policy: Policy, tools: Sequence[schema.Tool] | None, opened: bool
) -> tool_dialects.Reading:
  """How calls and thoughts of an answer are read; arguments as of `called`."""
  told = [tool.function.model_dump(exclude_none=True) for tool in tools or ()]
  return tool_dialects.Reading(
    policy.dialect, tools=told or None, opened=opened
  )


def called(
  policy: Policy,
  answer: Answer,
  tools: Sequence[schema.Tool] | None,
  opened: bool,
) -> list[tool_call.ToolCall]:
  """The tool calls of an answer; [] where any of them is no call.

  Args:
    policy: How they are spelt.
    answer: What it said.
    tools: What may be called; nothing is without.
    opened: Whether the prompt ended inside of a thought.
  """
  if not tools:
    return []
  found = reading(policy, tools, opened).calls(answer.said)
  # What is nested deeper than a client may send back is no call, either.
  if any(c.name is None or schema.is_deep(c.arguments) for c in found):
    return []
  return found
