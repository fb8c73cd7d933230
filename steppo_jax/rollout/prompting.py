"""Prompts: how what an environment says becomes token ids.

What the policy wrote enters later prompts as the ids it wrote, whatever the
order of a prompt: nothing is decoded and encoded again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from steppo_jax import types

_BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"
_TASK = "Your task is to: "
_RULES = "Answer with exactly one of the commands that are possible."

Layout = Literal["compact", "official", "prefix_friendly"]


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """What a prompt holds, and in which order.

  Attributes:
    layout: "compact" holds observations and answers in turn, for small models.
      "official" has the order of the published agents: task, observation,
      history, possible commands, instructions; every step reads a prompt of its
      own. "prefix_friendly" has the same sections, those that never change
      first and the newest last, so that a prompt extends the one before.
    history: Steps that a prompt remembers; None for all of them, and always all
      in "compact".
  """

  layout: Layout = "compact"
  history: int | None = None

  def __post_init__(self):
    if self.history is None:
      return
    if self.layout == "compact":
      raise ValueError(
        f"prompt.history={self.history} is not read by prompt.layout=compact"
      )
    if self.history < 0:
      raise ValueError(f"prompt.history={self.history} must be at least 0")


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


def make(config: PromptConfig, tokenizer: types.Tokenizer) -> Prompt:
  """The builder that the options name."""
  if config.layout == "compact":
    return CompactPrompt(tokenizer)
  return SectionPrompt(tokenizer, config)


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
    text = turn.observation.removeprefix(_BANNER)
    return self._ids(self.tokenizer.bos_id, text, self.tokenizer.end_of_turn_id)

  def extend(
    self, prompt_ids: np.ndarray, turns: Sequence[types.Turn]
  ) -> np.ndarray:
    """Prompt of the next step: the last one, its response, what followed."""
    return self._ids(
      prompt_ids,
      _closed(self.tokenizer, turns[-2].response_ids),
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
    return _ids(self.tokenizer, *parts)


@dataclasses.dataclass(frozen=True)
class SectionPrompt:
  """Prompts in sections: task, observation, history, commands, instructions.

  The sections of "official" make one turn that is written anew at every step:

      <bos> task, sight, history, commands, instructions <end> action <end>

  "prefix_friendly" says instructions and task once, and then what each step
  saw and could do. With all of the history a prompt extends the one before;
  with the last k steps of it, prompts share what comes before the history.

      <bos> instructions, task, sight, commands <end> action <end>
            sight, commands <end> action <end> ...

  Attributes:
    tokenizer: Its end-of-turn id closes both kinds of turn.
    config: Order and length of the history.
  """

  tokenizer: types.Tokenizer
  config: PromptConfig

  @property
  def append_only(self) -> bool:
    """Whether each prompt extends the one before and its answer."""
    config = self.config
    return config.layout == "prefix_friendly" and config.history is None

  def first(self, turn: types.Turn) -> np.ndarray:
    """Prompt of the first step: [P] int32."""
    return self._build([turn])

  def extend(
    self, prompt_ids: np.ndarray, turns: Sequence[types.Turn]
  ) -> np.ndarray:
    """Prompt of the next step."""
    if not self.append_only:
      return self._build(turns)
    answer = _closed(self.tokenizer, turns[-2].response_ids)
    return _ids(self.tokenizer, prompt_ids, answer, *self._shown(turns[-1]))

  def action(self, response_ids: np.ndarray) -> str:
    """The command that a response spells."""
    return self.tokenizer.decode(response_ids).strip()

  def _build(self, turns):
    task, seen = _split(turns[0].observation)
    turns = [turns[0]._replace(observation=seen), *turns[1:]]
    *past, now = turns
    if self.config.history is not None:
      past = past[max(len(past) - self.config.history, 0) :]
    bos, end = self.tokenizer.bos_id, self.tokenizer.end_of_turn_id
    if self.config.layout == "official":
      told = []
      for turn in past:
        answer = turn.response_ids
        told += [f"You saw: {turn.observation}\nYou answered: ", answer, "\n"]
      parts = [
        f"Your task: {task}\nYou see: {now.observation}\n",
        *(["Before that:\n", *told] if past else []),
        _possible(now),
        _RULES,
        end,
      ]
    else:
      parts = [f"{_RULES}\nYour task: {task}\n"]
      for turn in past:
        answer = _closed(self.tokenizer, turn.response_ids)
        parts += [*self._shown(turn), answer]
      parts += self._shown(now)
    # An end-of-turn inside the history would end this turn.
    inside = self.config.layout == "official"
    parts = [_without(p, end) if inside else p for p in parts]
    return _ids(self.tokenizer, bos, *parts)

  def _shown(self, turn):
    return [
      f"You see: {turn.observation}\n{_possible(turn)}",
      self.tokenizer.end_of_turn_id,
    ]


def _possible(turn: types.Turn) -> str:
  if not turn.commands:
    return ""
  return f"Possible: {', '.join(turn.commands)}\n"


def _split(observation: str) -> tuple[str, str]:
  """Task and the rest of a first observation."""
  seen, found, task = observation.removeprefix(_BANNER).rpartition(_TASK)
  return (task.strip(), seen.strip()) if found else ("", observation)


def _without(part, end: int):
  """An answer without its end-of-turn; anything else as it is."""
  if isinstance(part, np.ndarray) and len(part) and part[-1] == end:
    return part[:-1]
  return part


def _closed(tokenizer, response_ids: np.ndarray) -> np.ndarray:
  """An answer that the limit cut off is closed outside of what was sampled."""
  end = tokenizer.end_of_turn_id
  if len(response_ids) > 0 and response_ids[-1] == end:
    return response_ids
  return np.append(response_ids, np.int32(end))


def _ids(tokenizer, *parts) -> np.ndarray:
  """Texts are encoded, where control tokens are plain text; ids stay."""
  ids = [
    tokenizer.encode(part) if isinstance(part, str) else np.atleast_1d(part)
    for part in parts
  ]
  return np.concatenate(ids).astype(np.int32)
