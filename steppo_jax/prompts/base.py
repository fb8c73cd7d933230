"""Prompts: how what an environment says becomes token ids.

What the policy wrote enters later prompts as the ids it wrote, whatever the
order of a prompt: nothing is decoded and encoded again.
"""

import bisect
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from steppo_jax import types
from steppo_jax.envs import calls

BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"


class Prompt(Protocol):
  """Builds prompts.

  Attributes:
    tokenizer: What it encodes with.
    stop_ids: The tokens that end an answer.
    append_only: Whether each prompt extends the one before and its answer.
  """

  tokenizer: types.Tokenizer
  stop_ids: tuple[int, ...]
  append_only: bool

  def first(self, turn: types.Turn) -> np.ndarray:
    """Prompt of the first step: [P] int32."""

  def extend(
    self, prompt_ids: np.ndarray, turns: Sequence[types.Turn]
  ) -> np.ndarray:
    """Prompt of the next step.

    Args:
      prompt_ids: [P] int32, the prompt of the step before.
      turns: All turns so far; the last is still to be answered.
    """

  def action(self, response_ids: np.ndarray) -> str:
    """The command that a response spells."""

  def reasoning(self, response_ids: np.ndarray) -> np.ndarray:
    """[R] bool, the tokens of a response that are part of a thought."""


@dataclasses.dataclass(frozen=True)
class CompactPrompt:
  """Append-only prompts for small models: observation and action in turn.

      <bos> observation <end> action <end> observation <end> action <end> ...

  The first observation already names the task.

  Attributes:
    tokenizer: Its end-of-turn id closes both kinds of turn.
  """

  tokenizer: types.Tokenizer
  append_only = True

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's."""
    return self.tokenizer.stop_ids

  def first(self, turn: types.Turn) -> np.ndarray:
    """Prompt of the first step: [P] int32."""
    text = turn.observation.removeprefix(BANNER)
    return self._ids(self.tokenizer.bos_id, text, self.tokenizer.end_of_turn_id)

  def extend(
    self, prompt_ids: np.ndarray, turns: Sequence[types.Turn]
  ) -> np.ndarray:
    """Prompt of the next step: the last one, its response, what followed."""
    return self._ids(
      prompt_ids,
      closed(self.tokenizer, turns[-2].response_ids),
      turns[-1].observation,
      self.tokenizer.end_of_turn_id,
    )

  def action(self, response_ids: np.ndarray) -> str:
    """The command that a response spells."""
    shown = without_end(self.stop_ids, response_ids)
    return self.tokenizer.decode(shown).strip()

  def reasoning(self, response_ids: np.ndarray) -> np.ndarray:
    """[R] bool, the tokens of a response that are part of a thought."""
    return reasoning_mask(
      self.tokenizer, self.stop_ids, response_ids,
      lambda text: calls.scan(text).thoughts,
    )  # fmt: skip

  def response(self, action: str) -> np.ndarray:
    """The ids that spell a command, for demonstrations."""
    return self._ids(action, self.tokenizer.end_of_turn_id)

  def _ids(self, *parts) -> np.ndarray:
    return joined(self.tokenizer, *parts)


def closed(tokenizer: types.Tokenizer, response_ids: np.ndarray) -> np.ndarray:
  """An answer that the limit cut off is closed outside of what was sampled.

  Any of the tokens that end an answer closes it: one that was sampled stays,
  and none is written behind it.
  """
  if ended(tokenizer.stop_ids, response_ids):
    return response_ids
  return np.append(response_ids, np.int32(tokenizer.end_of_turn_id))


def ended(stop_ids: Sequence[int], response_ids: np.ndarray) -> bool:
  """Whether the last token of an answer is one that ends it."""
  return len(response_ids) > 0 and int(response_ids[-1]) in stop_ids


def without_end(
  stop_ids: Sequence[int], response_ids: np.ndarray
) -> np.ndarray:
  """An answer without the token that ended it, if one did."""
  return response_ids[:-1] if ended(stop_ids, response_ids) else response_ids


def reasoning_mask(
  tokenizer: types.Tokenizer,
  stop_ids: Sequence[int],
  response_ids: np.ndarray,
  thoughts: Callable[[str], Sequence[calls.Thought]],
) -> np.ndarray:
  """The tokens of a response that are part of a thought.

  The marks around a thought belong to it, and so does a token with a character
  of it. Places are found by decoding the beginnings of the response, so that no
  text is encoded again. The token that ends a response belongs to a thought
  that it cuts off.

  Args:
    tokenizer: Decodes the response.
    stop_ids: The tokens that end an answer.
    response_ids: [R] int32.
    thoughts: Takes the text; gives its thoughts.

  Returns:
    [R] bool.
  """
  shown = without_end(stop_ids, response_ids)
  text = tokenizer.decode(shown)
  found = np.zeros(len(response_ids), bool)

  def size(count):
    if count >= len(shown):
      return len(text)
    # The first bytes of a character are no character yet.
    return len(tokenizer.decode(shown[:count]).rstrip("\ufffd"))

  places = range(len(shown))
  for thought in thoughts(text):
    begin, end = 0, len(found)
    # From its beginning on even the first bytes of a character belong to it.
    if thought.first:
      begin = bisect.bisect_right(
        places, thought.first, key=lambda i: size(i + 1)
      )
    if thought.closed:
      end = bisect.bisect_left(places, thought.behind, key=size)
    found[begin:end] = True
  return found


def answer_ids(tokenizer: types.Tokenizer, text: str) -> np.ndarray:
  """The ids of an answer as a policy samples it: a mark is its one id.

  Marks are control tokens that are part of an answer, such as <think> and
  <tool_call>. What ends and begins turns stays plain text.

  Args:
    tokenizer: Encodes what is between the marks.
    text: An answer of the program's own, such as a demonstration.
  """
  controls = getattr(tokenizer, "controls", {})
  marks = [
    mark
    for mark in sorted(controls, key=len, reverse=True)
    if mark in text and tokenizer.decode([controls[mark]])
  ]
  if not marks:
    return tokenizer.encode(text)
  parts = re.split(f"({'|'.join(map(re.escape, marks))})", text)
  return joined(
    tokenizer,
    *(controls.get(x, x) if i % 2 else x for i, x in enumerate(parts)),
  )


def joined(
  tokenizer: types.Tokenizer, *parts: str | int | np.ndarray
) -> np.ndarray:
  """Texts are encoded, where control tokens are plain text; ids stay."""
  ids = [
    tokenizer.encode(part) if isinstance(part, str) else np.atleast_1d(part)
    for part in parts
  ]
  return np.concatenate(ids).astype(np.int32)
