"""Prompts in sections: who, task, observation, history, commands, how."""

import bisect
import dataclasses
import importlib
from collections.abc import Callable, Sequence

import numpy as np

from steppo_jax import types
from steppo_jax.envs import calls as envs_calls
from steppo_jax.envs import guides
from steppo_jax.prompts import base, options, tool_dialects
from steppo_jax.prompts import chat as chat_lib

THINK = (
  "Think first, inside <think> and </think>: what was found out, and what is "
  "the next useful thing to do."
)
ONE_CALL = "Then make exactly one call of a tool."
SEVERAL_CALLS = "Then make one or several calls of tools."
INVALID_CALL = "Your last answer was no valid call. A call is written "

_TASK = "Your task is to: "
_THOUGHT_END = "</think>"

# Takes the turns that a prompt leaves out; gives what stands for them.
Summary = Callable[[Sequence[types.Turn]], Sequence[str | np.ndarray]]


def make(
  config: options.PromptConfig, tokenizer: types.Tokenizer, env: str
) -> base.Prompt:
  """The builder that the options name.

  Args:
    config: The options.
    tokenizer: What it encodes with.
    env: Name of the environment, whose guide is told; see `envs.guides.get`.

  Raises:
    ValueError: `config.summary` names no function, or the tokenizer
      has no chat template that `config.layout` could use.
  """
  if config.layout == "compact":
    return base.CompactPrompt(tokenizer)
  guide = guides.get(env)
  if config.dialect == "action" and guide.unwrap is None:
    raise ValueError(
      f"prompt.dialect=action names no tool, and {env} has several"
    )
  if config.layout == "chat":
    return _chat(tokenizer, config, guide)
  return SectionPrompt(tokenizer, config, guide, _summary(config.summary))


def _chat(tokenizer, config, guide):
  """Messages of a template; without the system's where it knows none."""
  if not getattr(tokenizer, "chat_template", None):
    raise ValueError(
      "prompt.layout=chat needs a tokenizer with a chat template, such as "
      "tokenizer=model with the weights of a released model"
    )
  made = chat_lib.Chat(tokenizer)
  system = f"{guide.part}\n{how(guide, config)}"
  try:
    return ChatSections(
      tokenizer, config, guide, chat=chat_lib.ChatPrompt(made, system)
    )
  except ValueError:
    return ChatSections(
      tokenizer, config, guide, chat=chat_lib.ChatPrompt(made), preface=system
    )


def _summary(name: str | None) -> Summary | None:
  if name in (None, "actions"):
    return _actions if name else None
  module, colon, function = name.partition(":")
  try:
    found = getattr(importlib.import_module(module), function) if colon else 0
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f"prompt.summary={name}: {error}") from error
  if not callable(found):
    raise ValueError(
      f"prompt.summary={name!r} is neither 'actions' nor 'module:name' of a "
      "function"
    )
  return found


def _actions(turns: Sequence[types.Turn]) -> list[str | np.ndarray]:
  """What was answered at the steps that are left out, and nothing else."""
  told: list[str | np.ndarray] = ["Earlier you answered: "]
  for turn in turns:
    told += [turn.response_ids, "; "]
  return [*told[:-1], "\n"]


@dataclasses.dataclass(frozen=True)
class SectionPrompt:
  """Prompts in sections: guide, task, observation, history, commands.

  The sections of "official" make one turn that is written anew at every step:

      <bos> part, task, sight, history, commands, how to answer <end> answer

  "prefix_friendly" says guide and task once, and then what each step saw and
  could do. With all of the history a prompt extends the one before; with the
  last k steps of it, prompts share what comes before the history.

      <bos> part, how to answer, task, sight, commands <end> answer <end>
            sight, commands <end> answer <end> ...

  Attributes:
    tokenizer: Its end-of-turn id closes both kinds of turn.
    config: Order, length of the history, form of the answers.
    guide: What the agents of the environment are told.
    summary: What stands for steps that are left out; None for nothing.
  """

  tokenizer: types.Tokenizer
  config: options.PromptConfig
  guide: guides.Guide
  summary: Summary | None = None

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's."""
    return self.tokenizer.stop_ids

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
    tokenizer, (before, now) = self.tokenizer, turns[-2:]
    answer = base.closed(tokenizer, before.response_ids)
    return base.joined(tokenizer, prompt_ids, answer, *self._shown(now, before))

  def action(self, response_ids: np.ndarray) -> str:
    """What the environment reads of a response; "" for an invalid call."""
    shown = base.without_end(self.stop_ids, response_ids)
    text = self.tokenizer.decode(shown).strip()
    if self.config.answer == "command":
      read = envs_calls.without_thoughts(text) if self.config.think else text
      return read.strip()
    calls = tool_dialects.parse(
      text, self.config.dialect, strict=self.config.strict
    )
    tool = self.guide.unwrap
    if tool is None:
      return tool_dialects.canonical(calls)
    key = self.guide.tools[tool].key
    found = next((call for call in calls if call.name), None)
    # The dialect "action" names no tool: it has but one.
    if found is None or found.name not in (tool, "action"):
      return ""
    value = found.arguments.get(key)
    return value.strip() if isinstance(value, str) else ""

  def _build(self, turns):
    task, seen = _split(turns[0].observation)
    turns = [turns[0]._replace(observation=seen), *turns[1:]]
    history = self.config.history
    start = 0 if history is None else max(len(turns) - 1 - history, 0)
    forgotten = []
    if self.summary is not None and start:
      forgotten = [self._without_end(p) for p in self.summary(turns[:start])]
    make = (
      self._official if self.config.layout == "official" else self._friendly
    )
    return base.joined(
      self.tokenizer,
      self.tokenizer.bos_id,
      *make(task, turns, start, forgotten),
    )

  def _official(self, task, turns, start, forgotten):
    """One turn; an end-of-turn of the history would end it."""
    told = []
    for index in range(start, len(turns) - 1):
      turn = turns[index]
      before = turns[index - 1] if index else None
      answer = self._without_end(self._without_thought(turn.response_ids))
      told += [f"You saw: {self._seen(turn, before)}\nYou answered: "]
      told += [answer, "\n"]
    now, before = turns[-1], turns[-2] if len(turns) > 1 else None
    return [
      f"{self.guide.part}\nYour task: {task}\n"
      f"You see: {self._seen(now, before)}\n",
      *(["Before that:\n", *forgotten, *told] if told or forgotten else []),
      f"This is step {len(turns)}.\n",
      _possible(now),
      how(self.guide, self.config),
      self.tokenizer.end_of_turn_id,
    ]

  def _friendly(self, task, turns, start, forgotten):
    parts = [
      f"{self.guide.part}\n{how(self.guide, self.config)}\nYour task: {task}\n"
    ]
    parts += forgotten
    for index in range(start, len(turns)):
      turn = turns[index]
      parts += self._shown(turn, turns[index - 1] if index else None)
      if index < len(turns) - 1:
        parts.append(base.closed(self.tokenizer, turn.response_ids))
    return parts

  def _shown(self, turn, before):
    return [
      f"You see: {self._seen(turn, before)}\n{_possible(turn)}",
      self.tokenizer.end_of_turn_id,
    ]

  def _seen(self, turn, before) -> str:
    """What is seen, after a word on an answer that was no call."""
    unwraps = self.config.answer == "tool_call" and self.guide.unwrap
    if before is None or not unwraps or self.action(before.response_ids):
      return turn.observation
    form = example(self.guide, self.config.dialect)
    return f"{INVALID_CALL}{form}\n{turn.observation}"

  def response(self, action: str) -> np.ndarray:
    """The ids of an answer that is read as `action`, for demonstrations."""
    tool = self.guide.unwrap
    if self.config.answer == "tool_call" and tool is not None:
      arguments = {self.guide.tools[tool].key: action}
      action = tool_dialects.spell(tool, arguments, self.config.dialect)
    return base.joined(self.tokenizer, action, self.tokenizer.end_of_turn_id)

  def _without_thought(self, ids: np.ndarray) -> np.ndarray:
    """The ids behind a thought; all of them where it ends inside of one."""
    decode = self.tokenizer.decode
    if not self.config.think or _THOUGHT_END not in decode(ids):
      return ids
    ends = lambda count: _THOUGHT_END in decode(ids[:count])
    first = bisect.bisect_left(range(len(ids) + 1), True, key=ends)
    left = decode(ids[:first]).rstrip()  # A piece may hold the space behind it.
    return ids[first:] if left.endswith(_THOUGHT_END) else ids

  def _without_end(self, part):
    """An answer without its end-of-turn; anything else as it is."""
    if isinstance(part, np.ndarray):
      return base.without_end(self.stop_ids, part)
    return part


@dataclasses.dataclass(frozen=True)
class ChatSections(SectionPrompt):
  """The sections of "prefix_friendly" as messages of a chat template.

  Attributes:
    chat: Makes ids of messages; its system message tells part and answers.
    preface: Stands before the first observation, for templates that know no
      system.
  """

  chat: chat_lib.ChatPrompt = dataclasses.field(kw_only=True)
  preface: str = ""

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """The tokens that end an answer, the template's among them."""
    return self.chat.stop_ids

  @property
  def append_only(self) -> bool:
    """Whether the template leaves what came before as it was."""
    return self.chat.append_only

  def first(self, turn: types.Turn) -> np.ndarray:
    """Prompt of the first step: [P] int32."""
    return self.chat.first(self._told([turn])[0])

  def extend(
    self, prompt_ids: np.ndarray, turns: Sequence[types.Turn]
  ) -> np.ndarray:
    """Prompt of the next step."""
    return self.chat.extend(prompt_ids, self._told(turns))

  def _told(self, turns):
    """The turns with all that is said of them as their observations."""
    task, seen = _split(turns[0].observation)
    turns = [turns[0]._replace(observation=seen), *turns[1:]]
    told = []
    for index, turn in enumerate(turns):
      before = turns[index - 1] if index else None
      text = f"You see: {self._seen(turn, before)}\n{_possible(turn)}".rstrip()
      if before is None:
        lead = f"{self.preface}\n" if self.preface else ""
        text = f"{lead}Your task: {task}\n{text}"
      told.append(turn._replace(observation=text))
    return told


def describe_tools(guide: guides.Guide, dialect: tool_dialects.Dialect) -> str:
  """The tools of a guide, one line each, and the form of a call."""
  lines = ["Tools:"]
  for name, tool in guide.tools.items():
    lines.append(f'- {name}("{tool.key}"): {tool.purpose}')
  return "\n".join([*lines, f"A call is written {example(guide, dialect)}"])


def example(guide: guides.Guide, dialect: tool_dialects.Dialect) -> str:
  """A call of the first tool of a guide as the dialect writes it."""
  name, tool = next(iter(guide.tools.items()))
  return tool_dialects.spell(name, {tool.key: tool.example}, dialect)


def how(guide: guides.Guide, config: options.PromptConfig) -> str:
  """How the agent is told to answer."""
  lines = [THINK] if config.think else []
  if config.answer == "tool_call":
    one = guide.unwrap is not None
    lines.insert(0, describe_tools(guide, config.dialect))
    lines.append(ONE_CALL if one else SEVERAL_CALLS)
  else:
    lines.append(guide.answer)
  return "\n".join(lines)


def _possible(turn: types.Turn) -> str:
  if not turn.commands:
    return ""
  return f"Possible: {', '.join(turn.commands)}\n"


def _split(observation: str) -> tuple[str, str]:
  """Task and the rest of a first observation."""
  shown = observation.removeprefix(base.BANNER)
  seen, found, task = shown.rpartition(_TASK)
  return (task.strip(), seen.strip()) if found else ("", observation)
