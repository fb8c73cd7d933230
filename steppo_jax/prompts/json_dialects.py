"""Dialects whose arguments are JSON: Hermes, DeepSeek, Kimi, Mistral, Harmony.

`docs/chat_formats.md` says which models write which, and against which chat
templates they were checked.
"""

import re

from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import loose_json, tool_call
from steppo_jax.prompts.tool_call import Form, ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def read_hermes(text, mark, strict, kinds):
  """<tool_call>{"name": ..., "arguments": {...}}</tool_call>."""
  if not strict:
    return tool_call.read_objects(text, mark.end(), _OPEN, _CLOSE, "arguments")
  record, at = envs_calls.read_json(text, mark.end())
  at = tool_call.closed(text, at, _CLOSE)
  return [tool_call.of_record(record, "arguments", True)], at


def _record(name, arguments) -> str:
  return tool_call.to_json({"name": name, "arguments": dict(arguments)})


HERMES = Form(
  opening=re.escape(_OPEN),
  read=read_hermes,
  spell=lambda name, arguments, kinds: (
    f"{_OPEN}{_record(name, arguments)}{_CLOSE}"
  ),
)


def _arguments(text, at, strict):
  """An object of arguments, whose every bracket must be there."""
  try:
    found, at = envs_calls.read_json(text, at)
  except ValueError:
    if strict:
      raise
    found, at = loose_json.read(text, at, ends=0)
  if not isinstance(found, dict):
    raise ValueError("the arguments are no object")
  return found, at


def _named(head: str, closing: str, *, ends_turn: bool = False):
  """Reads calls of a name, their arguments as JSON, and a mark of their end.

  A mark that ends the turn too is left out where ids are decoded.
  """
  pattern = re.compile(head)

  def read(text, mark, strict, kinds):
    found = pattern.match(text, mark.start())
    if found is None:
      raise ValueError("no name and arguments behind the mark")
    arguments, at = _arguments(text, found.end(), strict)
    fence = loose_json.skip(text, at)
    at = fence + 3 if text.startswith("```", fence) else at
    end = loose_json.skip(text, at)
    if text.startswith(closing, end):
      at = end + len(closing)
    elif strict and not (
      ends_turn and text[end : end + 9] in ("", "<|start|>")
    ):
      tool_call.closed(text, at, closing)
    (name,) = [name for name in found.groups() if name]
    return [ToolCall(name.strip(), arguments)], at

  return read


def _deepseek(name, arguments, kinds) -> str:
  name = tool_call.name_checked(name, "deepseek")
  return (
    f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>"
    f"{tool_call.to_json(dict(arguments))}<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>"
  )


# V3 and R1 write a type first and the arguments in a fence; V3.1 neither.
DEEPSEEK = Form(
  opening="<｜tool▁call▁begin｜>",
  read=_named(
    r"<｜tool▁call▁begin｜>\s*(?:function<｜tool▁sep｜>([^\n<`{]+)\n```json\s|"
    r"([^\n<`{]+)<｜tool▁sep｜>)",
    "<｜tool▁call▁end｜>",
  ),
  spell=_deepseek,
  around="<｜tool▁calls▁(?:begin|end)｜>",
)


def _kimi(name, arguments, kinds) -> str:
  name = tool_call.name_checked(name, "kimi")
  return (
    f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0"
    f"<|tool_call_argument_begin|>{tool_call.to_json(dict(arguments))}"
    "<|tool_call_end|><|tool_calls_section_end|>"
  )


KIMI = Form(
  opening=r"<\|tool_call_begin\|>",
  read=_named(
    r"<\|tool_call_begin\|>\s*(?:functions\.)?([^\s<{]+?)(?::\d+)?\s*"
    r"<\|tool_call_argument_begin\|>",
    "<|tool_call_end|>",
  ),
  spell=_kimi,
  around=r"<\|tool_calls_section_(?:begin|end)\|>",
)

# Whom a message is for stands in front of the channel, as the template writes
# it, or behind, as models do. A body may follow as JSON or as code.
_RECIPIENT = r"\s+to=(?:functions\.)?([\w.-]+)"
_TYPE = r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
_CHANNEL = r"<\|channel\|>(?:commentary|analysis|final)"
_HEAD = (
  rf"(?:(?:<\|start\|>)?assistant)?(?: ?\bto=(?:functions\.)?([\w.-]+)\s*"
  rf"{_CHANNEL}{_TYPE}|{_CHANNEL}{_RECIPIENT}{_TYPE})"
)


def _harmony(name, arguments, kinds) -> str:
  name = tool_call.name_checked(name, "harmony")
  return (
    f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    f"{tool_call.to_json(dict(arguments))}<|call|>"
  )


HARMONY = Form(
  opening=_HEAD.replace(r"([\w.-]+)", r"[\w.-]+"),
  read=_named(_HEAD, "<|call|>", ends_turn=True),
  spell=_harmony,
)

_TOOL_CALLS = "[TOOL_CALLS]"
_NAMED = re.compile(
  r"\s*([\w.:/-]+)\s*(?:\[CALL_ID\][^\[\s]*\s*)?(?:\[ARGS\]|(?=\{))"
)


def _read_mistral(text, mark, strict, kinds):
  """A list of records, or a name and its arguments."""
  at = mark.end()
  named = _NAMED.match(text, at)
  if named:
    arguments, at = _arguments(text, named.end(), strict)
    return [ToolCall(named[1], arguments)], at
  if not strict:
    return tool_call.read_objects(
      text, at, _TOOL_CALLS, "[/TOOL_CALLS]", "arguments"
    )
  records, at = envs_calls.read_json(text, at)
  if not isinstance(records, list) or not records:
    raise ValueError(f"no list behind {_TOOL_CALLS}")
  more = lambda one: tool_call.of_record(one, "arguments", True, ("id",))
  return [more(one) for one in records], at


MISTRAL = Form(
  opening=re.escape(_TOOL_CALLS),
  read=_read_mistral,
  spell=lambda name, arguments, kinds: (
    f"{_TOOL_CALLS}[{_record(name, arguments)}]"
  ),
)
