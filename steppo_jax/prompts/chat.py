"""Conversations as token ids, in the form of a model's chat template.

What the policy wrote stays the ids that it sampled, and every other content is
plain text, so that nothing in it can end a turn or begin one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from steppo_jax import types
from steppo_jax.envs import calls
from steppo_jax.prompts import base, chat_template

Message = Mapping[str, Any]


class ChatTokenizer(types.Tokenizer, Protocol):
  """A tokenizer that knows the control tokens of a chat template."""

  special: Mapping[str, str]
  chat_template: str | None

  def encode_template(self, text: str) -> np.ndarray:
    """Returns int32 ids; control tokens spelt in `text` become their ids."""


class Prompted(NamedTuple):
  """A prompt.

  Attributes:
    ids: [P] int32.
    spans: (first, behind the last, message) of each content, in order.
    dropped: Messages of whose content a part is not shown, such as thoughts.
    faithful: Whether it reads as the template writes it by itself.
    extends: Whether it begins with the prompt before and what was answered;
      True for a first prompt. Where the template rewrites what came before, the
      step has a prompt of its own.
  """

  ids: np.ndarray
  spans: tuple[tuple[int, int, int], ...]
  dropped: tuple[int, ...]
  faithful: bool
  extends: bool = True


class Chat:
  """Prompts of one tokenizer in the form of one chat template."""

  def __init__(
    self,
    tokenizer: ChatTokenizer,
    *,
    template: str | None = None,
    where: str = "the tokenizer",
    **options: Any,
  ):
    """Compiles the template.

    Args:
      tokenizer: Encodes contents and the texts of the template.
      template: Jinja source; None for that of the tokenizer.
      where: The file, for errors.
      options: Further variables of the template, such as tools or
        enable_thinking. They are the program's own and may hold control tokens.

    Raises:
      ValueError: there is no template, or it is broken.
      RuntimeError: the package jinja2 is missing.
    """
    source = template or tokenizer.chat_template
    if not source:
      raise ValueError(
        f"{where} has no chat template: give one, or prompt without a chat"
      )
    self.tokenizer = tokenizer
    self._options = options
    self._template = chat_template.ChatTemplate(
      source, tokenizer.special, where=where
    )

  def prompt(
    self, messages: Sequence[Message], *, generate: bool = True
  ) -> Prompted:
    """The ids of some messages.

    Args:
      messages: With `role` and `content`. An assistant's that the policy wrote
        has its `ids` too, as they were sampled.
      generate: Whether the beginning of an answer follows.

    Raises:
      ValueError: the template does not take the messages.
    """
    shown = [_without_ids(message) for message in messages]
    found = self._template.render(
      shown, **({"add_generation_prompt": generate} | self._options)
    )
    parts, spans, at, closed = [], [], 0, False
    for piece in found.pieces:
      if isinstance(piece, str):
        ids = self.tokenizer.encode_template(piece)
        # The end of the turn that the policy sampled is not written twice.
        if closed and len(ids) and ids[0] == self.tokenizer.end_of_turn_id:
          ids = ids[1:]
        closed = False
      else:
        ids = messages[piece.message].get("ids") if piece.whole else None
        if ids is None:
          ids = self.tokenizer.encode(piece.text)
        closed = len(ids) > 0 and ids[-1] == self.tokenizer.end_of_turn_id
        spans.append((at, at + len(ids), piece.message))
      parts.append(np.asarray(ids, np.int32))
      at += len(ids)
    ids = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return Prompted(ids, tuple(spans), found.dropped, found.faithful)

  def extend(
    self, prompt_ids: np.ndarray, messages: Sequence[Message]
  ) -> Prompted:
    """The prompt behind an answer; says whether it extends the one before.

    Args:
      prompt_ids: [P] int32, the prompt of the step before.
      messages: All of them; the last of an assistant has the `ids` of the
        answer to that prompt.

    Raises:
      ValueError: the template does not take the messages, or none of them has
        ids.
    """
    answers = [m["ids"] for m in messages if m.get("ids") is not None]
    if not answers:
      raise ValueError("no message has the ids of an answer")
    prompt = self.prompt(messages)
    extends = extended([prompt_ids, prompt.ids], [answers[-1]])[0]
    return prompt._replace(extends=extends)

  def answer(self, response_ids: np.ndarray) -> dict[str, Any]:
    """What the policy wrote, as a message."""
    text = self.tokenizer.decode(response_ids)
    return {"role": "assistant", "content": text, "ids": response_ids}


def extended(
  prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]
) -> list[bool]:
  """Whether each prompt but the first begins with all that came before it.

  Args:
    prompts: K arrays [P] int32, the prompts of an episode.
    responses: K or K - 1 arrays [R] int32, the answers to them.

  Returns:
    K - 1 times whether prompt k + 1 is prompt k, response k and more.
  """
  found = []
  for before, response, after in zip(
    prompts, responses, prompts[1:], strict=False
  ):
    whole = np.concatenate([before, response])
    found.append(np.array_equal(after[: len(whole)], whole))
  return found


class Conversation:
  """One conversation that grows by ids.

  Attributes:
    messages: All messages so far.
    prompts: Every prompt that was answered or is to be.
    responses: The answers.
  """

  def __init__(self, chat: Chat, messages: Sequence[Message]):
    """Begins with some messages.

    Raises:
      ValueError: the template does not take them.
    """
    self._chat = chat
    self.messages = list(messages)
    self.prompts = [chat.prompt(self.messages)]
    self.responses: list[np.ndarray] = []

  @property
  def prompt_ids(self) -> np.ndarray:
    """[P] int32, what is to be answered."""
    return self.prompts[-1].ids

  def reply(self, response_ids: np.ndarray, *messages: Message) -> Prompted:
    """Adds an answer and what came back; returns the next prompt.

    Raises:
      ValueError: the template does not take them; nothing is added then.
    """
    more = [*self.messages, self._chat.answer(response_ids), *messages]
    prompt = self._chat.extend(self.prompt_ids, more)
    self.messages = more
    self.prompts.append(prompt)
    self.responses.append(response_ids)
    return prompt


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
  """Prompts of a rollout in the form of a chat template; a `base.Prompt`.

  Attributes:
    chat: Tokenizer and template.
    system: First message, None for none.
    role: Whose messages later observations are: "user", or "tool" where the
      template knows it.
    append_only: Whether the template leaves what came before as it was.
    opens_thought: Whether prompts end inside of a thought, so that an answer
      begins in it.
  """

  chat: Chat
  system: str | None = None
  role: str = "user"
  append_only: bool = dataclasses.field(init=False)
  opens_thought: bool = dataclasses.field(init=False)

  def __post_init__(self):
    turns = [types.Turn("a"), types.Turn("b")]
    prompt = self.chat.prompt(self._messages(turns[:1]))
    first = prompt.ids
    # What the template writes behind the last content.
    behind = first[max((end for _, end, _ in prompt.spans), default=0) :]
    opens = calls.opens_thought(self.tokenizer.decode(behind))
    object.__setattr__(self, "opens_thought", opens)
    answer = "<think>\nc\n</think>\n\nd"
    turns[0] = turns[0]._replace(response_ids=self.response(answer))
    second = self.chat.extend(first, self._messages(turns))
    object.__setattr__(self, "append_only", second.extends)

  @property
  def tokenizer(self) -> ChatTokenizer:
    """What it encodes with."""
    return self.chat.tokenizer

  def first(self, turn: types.Turn) -> np.ndarray:
    """Prompt of the first step: [P] int32."""
    return self.chat.prompt(self._messages([turn])).ids

  def extend(
    self, prompt_ids: np.ndarray, turns: Sequence[types.Turn]
  ) -> np.ndarray:
    """Prompt of the next step."""
    return self.chat.extend(prompt_ids, self._messages(turns)).ids

  def action(self, response_ids: np.ndarray) -> str:
    """The command that a response spells, without its thoughts."""
    text = self.tokenizer.decode(response_ids)
    return calls.without_thoughts(text, opened=self.opens_thought).strip()

  def response(self, action: str) -> np.ndarray:
    """The ids that spell a command, for demonstrations."""
    end = np.int32(self.tokenizer.end_of_turn_id)
    return np.append(base.answer_ids(self.tokenizer, action), end)

  def _messages(self, turns: Sequence[types.Turn]) -> list[dict[str, Any]]:
    messages = []
    if self.system is not None:
      messages.append({"role": "system", "content": self.system})
    for k, turn in enumerate(turns):
      role = self.role if k else "user"
      messages.append({"role": role, "content": turn.observation})
      if turn.response_ids is not None:
        messages.append(self.chat.answer(turn.response_ids))
    return messages


def _without_ids(message: Message) -> dict[str, Any]:
  return {key: value for key, value in message.items() if key != "ids"}
