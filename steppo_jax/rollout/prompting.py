"""Prompts: how what an environment says becomes token ids.

What the policy wrote enters later prompts as the ids it wrote, whatever the
order of a prompt: nothing is decoded and encoded again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from steppo_jax import types
from steppo_jax.rollout import tool_dialects

BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"

Layout = Literal["compact", "official", "prefix_friendly", "chat"]


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """What a prompt holds, and in which order.

  Attributes:
    layout: "compact" holds observations and answers in turn, for small models.
      "official" has the order of the published agents: task, observation,
      history, possible commands, instructions; every step reads a prompt of its
      own. "prefix_friendly" has the same sections, those that never change
      first and the newest last, so that a prompt extends the one before. "chat"
      says the same in the messages of the tokenizer's chat template: what never
      changes as the system's, then observations and answers in turn.
    history: Steps that a prompt remembers; None for all of them, and always all
      in "compact".
    answer: "command": the answer is what the environment reads. "tool_call":
      it holds a call such as <tool_call>{"name": "env_step", "arguments":
      {"action": "go to desk 1"}}</tool_call>; see `guides`.
    think: Whether the agent is told to think before it answers, and what it
      wrote inside <think> is no part of the answer.
    dialect: How calls are spelt; see `tool_dialects`. "action" is for
      environments that read commands.
    strict: Whether nothing but thoughts and white space may stand outside of a
      call, and calls must have exactly the form that is shown.
    summary: What stands for the steps that `history` forgets: None for nothing,
      "actions" for what was answered, or "module:name" of a function that takes
      the forgotten turns and returns texts and ids.
  """

  layout: Layout = "compact"
  history: int | None = None
  answer: Literal["command", "tool_call"] = "command"
  think: bool = False
  dialect: tool_dialects.Dialect = "hermes"
  strict: bool = False
  summary: str | None = None

  def __post_init__(self):
    if self.layout == "compact":
      plain = PromptConfig.__dataclass_fields__
      for name in (
        "history",
        "answer",
        "think",
        "dialect",
        "strict",
        "summary",
      ):
        if getattr(self, name) != plain[name].default:
          raise ValueError(
            f"prompt.{name}={getattr(self, name)} is not read by "
            "prompt.layout=compact"
          )
    if self.layout == "chat" and self.history is not None:
      raise ValueError(
        f"prompt.history={self.history} is not read by prompt.layout=chat"
      )
    if self.history is not None and self.history < 0:
      raise ValueError(f"prompt.history={self.history} must be at least 0")
    if self.answer != "tool_call" and (self.strict or self.dialect != "hermes"):
      raise ValueError(
        "prompt.strict and prompt.dialect are for prompt.answer=tool_call"
      )
    if self.summary is not None and self.history is None:
      raise ValueError(
        f"prompt.summary={self.summary} needs prompt.history: nothing is "
        "forgotten without"
      )


class Prompt(Protocol):
  """Builds prompts.

  Attributes:
    tokenizer: What it encodes with.
    append_only: Whether each prompt extends the one before and its answer.
  """

  tokenizer: types.Tokenizer
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
    return self.tokenizer.decode(response_ids).strip()

  def response(self, action: str) -> np.ndarray:
    """The ids that spell a command, for demonstrations."""
    return self._ids(action, self.tokenizer.end_of_turn_id)

  def _ids(self, *parts) -> np.ndarray:
    return joined(self.tokenizer, *parts)


def closed(tokenizer: types.Tokenizer, response_ids: np.ndarray) -> np.ndarray:
  """An answer that the limit cut off is closed outside of what was sampled."""
  end = tokenizer.end_of_turn_id
  if len(response_ids) > 0 and response_ids[-1] == end:
    return response_ids
  return np.append(response_ids, np.int32(end))


def joined(
  tokenizer: types.Tokenizer, *parts: str | int | np.ndarray
) -> np.ndarray:
  """Texts are encoded, where control tokens are plain text; ids stay."""
  ids = [
    tokenizer.encode(part) if isinstance(part, str) else np.atleast_1d(part)
    for part in parts
  ]
  return np.concatenate(ids).astype(np.int32)
