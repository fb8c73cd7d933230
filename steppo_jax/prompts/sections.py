"""Prompts in sections: who, task, observation, history, commands, how."""

import bisect
import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

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
WRONG = "What was wrong: "
ONLY_FIRST = "Only the first call of your last answer was made."

_TASK = "Your task is to: "

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

  @property
  def opens_thought(self) -> bool:
    """Whether an answer begins inside of a thought: here it never does."""
    return False

  def action(self, response_ids: np.ndarray) -> str:
    """What the environment reads of a response; "" for an invalid call."""
    return self._read(response_ids)[0]

  def refuses(self, response_ids: np.ndarray) -> bool:
    """Whether a response is an invalid call, of which nothing is read."""
    unwraps = self.config.answer == "tool_call" and self.guide.unwrap
    return bool(unwraps) and not self.action(response_ids)

  def reasoning(self, response_ids: np.ndarray) -> np.ndarray:
    """[R] bool, the tokens of a response that are part of a thought."""
    opened, thoughts = self.opens_thought, self._reading.thoughts
    if self.config.answer == "command":
      thoughts = lambda text: envs_calls.scan(text, opened=opened).thoughts
    return base.reasoning_mask(
      self.tokenizer, self.stop_ids, response_ids, thoughts
    )

  @property
  def _reading(self) -> tool_dialects.Reading:
    config = self.config
    return tool_dialects.Reading(
      config.dialect, config.strict, schemas(self.guide), self.opens_thought
    )

  def _read(self, response_ids: np.ndarray) -> tuple[str, str]:
    """What the environment reads, and what the agent is to be told of it."""
    shown = base.without_end(self.stop_ids, response_ids)
    text = self.tokenizer.decode(shown).strip()
    config, opened = self.config, self.opens_thought
    if config.answer == "command":
      # Some environments read thoughts that nobody was told to write.
      if config.think or config.layout == "chat":
        text = envs_calls.without_thoughts(text, opened=opened).strip()
      return text, ""
    calls = self._reading.calls(text)
    tool = self.guide.unwrap
    if tool is None:
      return tool_dialects.canonical(calls), ""
    fault = next((call.error for call in calls if call.error), "")
    if fault or not calls:
      return "", fault
    call, key = calls[0], self.guide.tools[tool].key
    # The dialect "action" names no tool: it has but one.
    if call.name not in (tool, "action"):
      return "", f"there is no tool {call.name!r}"
    value = call.arguments.get(key)
    if not isinstance(value, str):
      return "", f"{tool} needs a string {key!r}"
    return value.strip(), ONLY_FIRST if len(calls) > 1 else ""

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
    if before is None or not unwraps:
      return turn.observation
    action, told = self._read(before.response_ids)
    if not action:
      told = f"{WRONG}{told}" if told else ""
      told = f"{INVALID_CALL}{example(self.guide, self.config.dialect)}\n{told}"
    return f"{told.strip()}\n{turn.observation}" if told else turn.observation

  def response(self, action: str) -> np.ndarray:
    """The ids of an answer that is read as `action`, for demonstrations."""
    tool = self.guide.unwrap
    if self.config.answer == "tool_call" and tool is not None:
      arguments = {self.guide.tools[tool].key: action}
      action = tool_dialects.spell(
        tool, arguments, self.config.dialect, tools=schemas(self.guide)
      )
    ids = base.answer_ids(self.tokenizer, action)
    return base.joined(self.tokenizer, ids, self.tokenizer.end_of_turn_id)

  def _without_thought(self, ids: np.ndarray) -> np.ndarray:
    """The ids behind a thought; all of them where it ends inside of one."""
    decode = self.tokenizer.decode
    text = decode(ids)
    end = envs_calls.behind_thought(text)
    if not self.config.think or not end:
      return ids
    size = lambda count: len(decode(ids[:count]))
    first = bisect.bisect_left(range(len(ids) + 1), end, key=size)
    # A piece may hold the space behind the mark, but no more.
    left = decode(ids[:first]).rstrip()
    return ids[first:] if left == text[:end].rstrip() else ids

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

  @property
  def opens_thought(self) -> bool:
    """Whether the template begins a thought, which the answer goes on with."""
    return self.chat.opens_thought

  @property
  def generation_ids(self) -> np.ndarray | None:
    """[n] int32, what stands behind the last observation of each prompt."""
    return self.chat.generation_ids

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
  arguments = {tool.key: tool.example}
  return tool_dialects.spell(name, arguments, dialect, tools=schemas(guide))


def schemas(guide: guides.Guide) -> list[dict[str, Any]]:
  """The tools of a guide as chat templates take them."""
  return [
    {
      "name": name,
      "description": tool.purpose,
      "parameters": {
        "type": "object",
        "properties": {tool.key: {"type": "string"}},
        "required": [tool.key],
      },
    }
    for name, tool in guide.tools.items()
  ]


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
