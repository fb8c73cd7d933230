"""Options of prompts: their layout, and how an answer is written."""

import dataclasses
from typing import Literal

from steppo_jax.prompts import tool_dialects

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
    think: Whether the agent is told to think before it answers, and its
      thoughts are no part of the answer; in calls and chats they never are.
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
