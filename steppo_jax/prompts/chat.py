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

# Tokens of the end of a turn, where it is more than one.
_LONGEST_END = 16


class ChatTokenizer(types.Tokenizer, Protocol):
  """A tokenizer that knows the control tokens of a chat template."""

  special: Mapping[str, str]
  controls: Mapping[str, int]
  chat_template: str | Mapping[str, str] | None

  def encode_template(self, text: str) -> np.ndarray:
    """Returns int32 ids; control tokens spelt in `text` become their ids."""


class Prompted(NamedTuple):
  """A prompt.

  Attributes:
    ids: [P] int32.
    spans: (first, behind the last, message) of each content, in order.
    dropped: Messages of whose content a part is not shown, such as thoughts.
    differs: Where it does not read as the template writes it by itself, and
      how; "" where it does.
    extends: Whether it begins with the prompt before and what was answered;
      True for a first prompt. Where the template rewrites what came before, the
      step has a prompt of its own.
  """

  ids: np.ndarray
  spans: tuple[tuple[int, int, int], ...]
  dropped: tuple[int, ...]
  differs: str = ""
  extends: bool = True

  @property
  def faithful(self) -> bool:
    """Whether it reads as the template writes it by itself."""
    return not self.differs


class _Sampled(NamedTuple):
  """An answer of the policy, in the place of its text.

  Attributes:
    message: Index of the message.
    ids: [R] int32, as they were sampled.
  """

  message: int
  ids: np.ndarray


class Chat:
  """Prompts of one tokenizer in the form of one chat template.

  Attributes:
    tokenizer: What it encodes with.
    end_id: The token that ends a turn: what the template writes behind an
      assistant's, or the tokenizer's where it writes none.
    stop_ids: All tokens that end an answer, `end_id` first.
  """

  def __init__(
    self,
    tokenizer: ChatTokenizer,
    *,
    template: str | Mapping[str, str] | None = None,
    where: str = "the tokenizer",
    **options: Any,
  ):
    """Compiles the template.

    Args:
      tokenizer: Encodes contents and the texts of the template.
      template: Jinja source, or several by their names; None for that of the
        tokenizer.
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
    known = (tokenizer.end_of_turn_id, *tokenizer.stop_ids)
    found = self._template.end_ids(tokenizer, known)
    self._closing = found.closing
    self.end_id = known[0] if found.stop is None else found.stop
    self.stop_ids = tuple(dict.fromkeys((self.end_id, *known)))

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
    answers = {
      i: message["ids"]
      for i, message in enumerate(messages)
      if message.get("ids") is not None
    }
    pieces, differs = list(found.pieces), found.differs
    for index, ids in answers.items():
      pieces, told = self._as_sampled(pieces, index, ids)
      differs = differs or told
    parts, spans, at = [], [], 0
    for k, piece in enumerate(pieces):
      if isinstance(piece, str):
        before = pieces[k - 1] if k else None
        if isinstance(before, _Sampled):
          ids, told = self._behind(before.ids, piece)
          differs = differs or told
        else:
          ids = self.tokenizer.encode_template(piece)
      else:
        sampled = isinstance(piece, _Sampled)
        ids = piece.ids if sampled else self.tokenizer.encode(piece.text)
        spans.append((at, at + len(ids), piece.message))
      parts.append(np.asarray(ids, np.int32))
      at += len(ids)
    ids = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return Prompted(ids, tuple(spans), found.dropped, differs)

  def _as_sampled(self, pieces, index: int, ids: np.ndarray):
    """The pieces with the ids of an answer in the place of its text.

    A template may write an answer in several pieces, thoughts and the rest,
    with marks of its own between them. Where all of it reads as the answer
    does, it is the answer; where it does not, the template has rewritten it,
    and its text is encoded as any other.

    Returns:
      The pieces, and how they differ from what the template writes.
    """
    at = [
      k
      for k, piece in enumerate(pieces)
      if isinstance(piece, chat_template.Slot)
      and piece.message == index
      and not piece.beside
    ]
    if not at:
      return pieces, ""
    first, last = at[0], at[-1] + 1
    text, sampled = self._text(ids), _Sampled(index, ids)
    if last - first == 1 and pieces[first].whole:
      told = ""
      if pieces[first].text != text:
        told = f"the template strips white space of an answer: {text!r}"
      return [*pieces[:first], sampled, *pieces[last:]], told
    whole = "".join(
      piece if isinstance(piece, str) else piece.text
      for piece in pieces[first:last]
    )
    run = whole.strip()
    # What opens a thought may stand in the template's text before it.
    opening, found, rest = text.rpartition(run or "\0")
    before = pieces[first - 1] if first else ""
    if not (found and not rest.strip() and isinstance(before, str)):
      return pieces, ""
    if not before.endswith(opening):
      return pieces, ""
    before = before.removesuffix(opening)
    kept = [*pieces[: max(first - 1, 0)], *([before] if before else [])]
    told = ""
    if opening + whole != text:
      told = f"the template changes white space of an answer: {text!r}"
    return [*kept, sampled, *pieces[last:]], told

  def _behind(self, ids: np.ndarray, piece: str) -> tuple[np.ndarray, str]:
    """The template's ids behind an answer without the end it has already.

    Args:
      ids: [R] int32, the answer.
      piece: What the template writes behind it.

    Returns:
      The ids that are left, and how they differ from what the template writes.
    """
    behind = self.tokenizer.encode_template(piece)
    if not base.ended(self.stop_ids, ids):
      return behind, ""
    # Where the end is several tokens, all of them were sampled.
    for size in range(min(len(behind), len(ids), _LONGEST_END), 0, -1):
      if np.array_equal(ids[-size:], behind[:size]):
        return behind[size:], ""
    names = {i: text for text, i in self.tokenizer.controls.items()}
    last = names.get(int(ids[-1]))
    # Some templates put a space before the end.
    space = piece[: len(piece) - len(piece.lstrip())]
    skip = len(self.tokenizer.encode_template(space))
    written = behind[skip : skip + 1].tolist()
    if not written or written[0] not in (int(ids[-1]), *self._closing):
      return behind, (
        f"an answer ended with {last}, which the template does not write"
      )
    return behind[skip + 1 :], (
      f"an answer ended with {last}, where the template writes "
      f"{space + names[written[0]]!r}"
    )

  def _text(self, ids: np.ndarray) -> str:
    """The text of an answer, without the token that ended it."""
    return self.tokenizer.decode(base.without_end(self.stop_ids, ids))

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
    text = self._text(response_ids)
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
    generation_ids: [n] int32, what the template writes behind the last
      observation: the end of its turn, and how an answer begins; None where
      that differs between the first prompt and the next.
  """

  chat: Chat
  system: str | None = None
  role: str = "user"
  append_only: bool = dataclasses.field(init=False)
  opens_thought: bool = dataclasses.field(init=False)
  generation_ids: np.ndarray | None = dataclasses.field(
    init=False, compare=False, repr=False
  )

  def __post_init__(self):
    turns = [types.Turn("a"), types.Turn("b")]
    prompt = self.chat.prompt(self._messages(turns[:1]))
    first = prompt.ids
    behind = first[max((end for _, end, _ in prompt.spans), default=0) :]
    opens = calls.opens_thought(self.tokenizer.decode(behind))
    object.__setattr__(self, "opens_thought", opens)
    answer = "<think>\nc\n</think>\n\nd"
    turns[0] = turns[0]._replace(response_ids=self.response(answer))
    second = self.chat.extend(first, self._messages(turns))
    object.__setattr__(self, "append_only", second.extends)
    ends = np.array_equal(second.ids[len(second.ids) - len(behind) :], behind)
    object.__setattr__(self, "generation_ids", behind if ends else None)

  @property
  def tokenizer(self) -> ChatTokenizer:
    """What it encodes with."""
    return self.chat.tokenizer

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """The tokens that end an answer, the template's among them."""
    return self.chat.stop_ids

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
    text = self.chat.answer(response_ids)["content"]
    return calls.without_thoughts(text, opened=self.opens_thought).strip()

  def reasoning(self, response_ids: np.ndarray) -> np.ndarray:
    """[R] bool, the tokens of a response that are part of a thought."""
    return base.reasoning_mask(
      self.tokenizer, self.stop_ids, response_ids,
      lambda text: calls.scan(text, opened=self.opens_thought).thoughts,
    )  # fmt: skip

  def response(self, action: str) -> np.ndarray:
    """The ids that spell a command, for demonstrations."""
    end = np.int32(self.chat.end_id)
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
  if not isinstance(message, Mapping):
    return message  # Which rendering refuses.
  return {key: value for key, value in message.items() if key != "ids"}
