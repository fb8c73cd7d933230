"""The calls of one session as a tree: which prompt goes on from which answer.

A client sends its whole history with every call, in messages that it may have
changed: white space, the order of keys, thoughts that it leaves out. A message
that says what a recorded answer says *is* that answer, so that its place in the
prompt is taken by the tokens that were sampled, and no token that was sampled
is ever encoded again.

The prompt of a call that goes on from an answer is what that answer's prompt
was, the answer, and what the template writes behind it, whatever the template
would do to earlier messages. Every other call is a branch: it has a prompt of
its own, in which the answers that it repeats are again those that were sampled.
"""

import asyncio
import dataclasses
import functools
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import chat as chat_lib
from steppo_jax.serving import answers, schema
from steppo_jax.serving import scheduler as scheduler_lib


class Plan(NamedTuple):
  """What a call is going to read.

  Attributes:
    ids: [P] int32, the prompt.
    stop_ids: The tokens that end an answer.
    opened: Whether the prompt ends inside of a thought.
    parent: The turn that it goes on from, None for a branch.
    place: Digest of the conversation that it read, b"" where it read ids.
    size: Messages that it read.
  """

  ids: np.ndarray
  stop_ids: tuple[int, ...]
  opened: bool
  parent: "Turn | None"
  place: bytes
  size: int


class Settings(NamedTuple):
  """What else makes an answer what it is; a call repeated has the same.

  Attributes:
    limit: Most tokens that the client asked for.
    temperature: That it asked for.
    seed: That it asked for.
    stops: Texts that end the answer.
  """

  limit: int | None
  temperature: float | None
  seed: int | None
  stops: tuple[str, ...] = ()


@dataclasses.dataclass(eq=False)
class Turn:
  """One call and the answer to it, which may still grow.

  Attributes:
    number: 0, 1, 2, ... in the order in which calls began.
    plan: What it read.
    settings: How it was asked for.
    wanted: What the engine was asked for.
    answer: What was sampled.
    tools: What could be called.
    called: The tool calls that the client was shown.
    pieces: The answer as it came.
    error: What ended it without an answer.
    delivered: Whether a client has been sent all of it.
    went_on: Whether another turn goes on from it.
  """

  number: int
  plan: Plan
  settings: Settings
  wanted: types.Request
  answer: answers.Answer
  tools: Sequence[schema.Tool] | None = None
  called: Sequence[Any] = ()
  pieces: list[scheduler_lib.Piece] = dataclasses.field(default_factory=list)
  error: BaseException | None = None
  delivered: bool = False
  went_on: bool = False
  changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

  @property
  def done(self) -> bool:
    """Whether the answer has ended."""
    return self.answer.finish is not None

  @property
  def response_ids(self) -> np.ndarray:
    """[R] int32, what was sampled."""
    return np.array(self.answer.ids, np.int32)

  @functools.cached_property
  def whole(self) -> np.ndarray:
    """[P + R] int32, what was read and sampled, when the answer has ended."""
    return np.concatenate([self.plan.ids, self.response_ids])

  def reads(self, plan: Plan) -> bool:
    """Whether another call reads the same."""
    return _same(self.plan.ids, plan.ids)

  def was_delivered(self) -> None:
    """Says that a client has been sent all of the answer."""
    self.delivered = True

  def grew(self) -> None:
    """Wakes whoever reads along."""
    self.changed.set()
    self.changed = asyncio.Event()

  async def replay(self) -> AsyncIterator[scheduler_lib.Piece]:
    """The pieces of the answer, from the first on, as they come.

    Raises:
      BaseException: what ended it; see `scheduler.Scheduler.answer`.
    """
    sent = 0
    while True:
      changed = self.changed
      while sent < len(self.pieces):
        yield self.pieces[sent]
        sent += 1
      if self.error is not None:
        raise self.error
      if self.done:
        return
      await changed.wait()


def said(message: schema.Message) -> str:
  """What a message says, equal for messages that stand for each other.

  Of an assistant's neither white space nor thoughts count, nor how the
  arguments of its calls are written; text beside calls is not shown, and so
  cannot come back. Names of calls are the client's own.

  Raises:
    ValueError: the arguments of a call are no JSON object.
  """
  if message.role != "assistant":
    role = "system" if message.role == "developer" else message.role
    return json.dumps([role, message.text, message.name])
  calls = [
    (call.function.name, schema.arguments(call.function))
    for call in message.tool_calls or ()
  ]
  return _assistant(message.text, calls)


def _assistant(text: str, calls: Sequence[tuple[str, Any]]) -> str:
  shown = "" if calls else "".join(envs_calls.without_thoughts(text).split())
  return json.dumps(["assistant", shown, _numbers(calls)], sort_keys=True)


def _numbers(value: Any) -> Any:
  """A value in which a number is what every language reads: 1 is 1.0."""
  if isinstance(value, dict):
    return {key: _numbers(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_numbers(one) for one in value]
  if isinstance(value, int | float) and not isinstance(value, bool):
    return value if abs(value) > 1e300 else float(value)
  return value


_NOTHING = _assistant("", ())


class Turns:
  """The turns of a session.

  Attributes:
    all: In the order in which they began; turns that failed are not among them.
  """

  def __init__(self, policy: answers.Policy):
    self._policy = policy
    self.all: list[Turn] = []
    # Turns by the conversation that ends with their answer, and by the answer.
    self._ends: dict[bytes, list[Turn]] = {}
    self._said: dict[str, list[Turn]] = {}

  @property
  def sampling(self) -> bool:
    """Whether an answer is under way."""
    return not all(turn.done for turn in self.all)

  def plan(
    self,
    messages: Sequence[schema.Message],
    tools: Sequence[schema.Tool] | None,
  ) -> Plan:
    """What a call with these messages reads.

    Raises:
      answers.Fault: the template does not take the messages.
    """
    made = self._policy.template(tools)
    try:
      keys = [said(message) for message in messages]
      places = _places(tools, keys)
      parent = self._parent(messages, places)
      rendered = [schema.as_template(message) for message in messages]
      recorded = self._recorded(messages, keys, places, parent)
      prompt = _rendered(made, rendered, recorded)
    except ValueError as error:
      raise answers.Fault(
        400, str(error), "invalid_request_error", "messages"
      ) from error
    ids = prompt.ids
    if parent is not None:
      # Whatever the template would change of what came before.
      end = _end(prompt, parent.plan.size, parent)
      if end is None:
        parent = None
      else:
        before = [parent.plan.ids, parent.response_ids]
        ids = np.concatenate([*before, ids[end:]])
    return Plan(
      ids, made.stop_ids, self._policy.opened(prompt), parent, places[-1],
      len(messages),
    )  # fmt: skip

  def plan_ids(self, ids: np.ndarray, stop_ids: tuple[int, ...]) -> Plan:
    """What a call with token ids reads: these, whatever they go on from."""
    parent = None
    for turn in self.all:
      if not turn.done:
        continue
      longer = parent is None or len(turn.whole) > len(parent.whole)
      if longer and _same(ids[: len(turn.whole)], turn.whole):
        parent = turn
    return Plan(ids, stop_ids, False, parent, b"", 0)

  def _parent(self, messages, places) -> Turn | None:
    """The turn with whose answer the longest part of a conversation ends."""
    for at in range(len(messages) - 1, -1, -1):
      found = self._ends.get(places[at + 1])
      if found and messages[at].role == "assistant":
        return _likest(found, messages[at])
    return None

  def _recorded(self, messages, keys, places, parent) -> dict[int, Turn]:
    """The turns whose answers messages are, by index."""
    found: dict[int, Turn] = {}
    for at, message in enumerate(messages):
      if message.role != "assistant":
        continue
      turns = self._ends.get(places[at + 1])
      if not turns and keys[at] != _NOTHING:
        turns = self._said.get(keys[at])
      if turns:
        found[at] = _likest(turns, message)
    # Of answers that say the same, those that the prompt before has.
    while parent is not None and parent.plan.place:
      found[parent.plan.size] = parent
      parent = parent.plan.parent
    return found

  def repeated(
    self, plan: Plan, settings: Settings, *, resent: bool
  ) -> Turn | None:
    """The turn that a call asks for once more, None if it is a new one.

    A call is repeated if a turn has the same prompt and settings and

    -   it is the latest turn, or still under way,
    -   or nobody has got its whole answer,
    -   or the client says that it sends the call again, and nothing goes on
        from it.

    Args:
      plan: What it reads.
      settings: How it is asked for.
      resent: Whether the client says that it has sent the call before.
    """
    for turn in reversed(self.all):
      if turn.settings != settings or not turn.reads(plan):
        continue
      latest = turn is self.all[-1]
      if latest or not (turn.done and turn.delivered):
        return turn
      if resent and not turn.went_on:
        return turn
    return None

  def forget(self) -> None:
    """Lets go of all turns."""
    self.all, self._ends, self._said = [], {}, {}

  def begin(self, turn: Turn) -> None:
    """Takes a turn in, whose answer is still to come."""
    self.all.append(turn)
    if turn.plan.parent is not None:
      turn.plan.parent.went_on = True

  def failed(self, turn: Turn, error: BaseException) -> None:
    """Takes a turn out that has got no answer."""
    turn.error = error
    self.all.remove(turn)
    turn.grew()

  def ended(self, turn: Turn) -> None:
    """Says that the answer of a turn is whole."""
    if not turn.plan.place:
      return
    turn.called = answers.called(
      self._policy, turn.answer, turn.tools, turn.plan.opened
    )
    calls = [(call.name, dict(call.arguments)) for call in turn.called]
    key = _assistant(turn.answer.text, calls)
    self._ends.setdefault(_place(turn.plan.place, key), []).append(turn)
    self._said.setdefault(key, []).append(turn)

  @property
  def next_number(self) -> int:
    """The number of the next turn."""
    return self.all[-1].number + 1 if self.all else 0


def _rendered(
  made: chat_lib.Chat,
  messages: list[dict[str, Any]],
  recorded: Mapping[int, Turn],
) -> chat_lib.Prompted:
  """What a template makes of messages, with answers as they were sampled."""
  messages = list(messages)
  for at, turn in recorded.items():
    messages[at] = made.answer(turn.response_ids)
  prompt = answers.prompted(made, messages)
  lost = [at for at, turn in recorded.items() if _end(prompt, at, turn) is None]
  if lost:
    # The template rewrites these, such as by leaving thoughts out. A content
    # without any has one place, which the tokens take.
    for at in lost:
      messages[at] |= {"content": "."}
    prompt = answers.prompted(made, messages)
  return prompt


def _end(prompt: chat_lib.Prompted, message: int, turn: Turn) -> int | None:
  """The place behind the answer of a turn; None where it is not in a prompt."""
  ids = turn.response_ids
  for start, end, at in prompt.spans:
    if at == message and _same(prompt.ids[start:end], ids):
      return end
  return None


def _likest(turns: Sequence[Turn], message: schema.Message) -> Turn:
  """Of turns that say the same, the latest that says it letter by letter."""
  exact = [turn for turn in turns if turn.answer.text == message.text]
  return (exact or turns)[-1]


def _places(
  tools: Sequence[schema.Tool] | None, keys: Sequence[str]
) -> list[bytes]:
  """Digests of a conversation's beginnings, of no message to all."""
  told = answers.tools_text(tools)
  found = [_place(b"", json.dumps(json.loads(told or "null"), sort_keys=True))]
  for key in keys:
    found.append(_place(found[-1], key))
  return found


def _place(before: bytes, key: str) -> bytes:
  text = key.encode("utf-8", "surrogatepass")
  return hashlib.blake2b(before + text, digest_size=16).digest()


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  return np.array_equal(a, b)
