"""Dialects whose arguments are JSON: Hermes, DeepSeek, Kimi, Mistral, Harmony.

`docs/chat_formats.md` says which models write which, and against which chat
templates they were checked.
"""

import re
from typing import NamedTuple

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


def _named(
  head: str, closing: str, *, ends_turn: bool = False, loose_head: str = ""
):
  """Reads calls of a name, their arguments as JSON, and a mark of their end.

  A mark that ends the turn too is left out where ids are decoded.
  """
  pattern = re.compile(head)
  loose_pattern = re.compile(loose_head or head)

  def read(text, mark, strict, kinds, start=None):
    start = mark.start() if start is None else start
    found = (pattern if strict else loose_pattern).match(text, start)
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


# A name between two marks is never longer.
_LONGEST = 256


class _Marks(NamedTuple):
  """What stands around calls and in them.

  Attributes:
    section: Opens all calls.
    section_end: Closes them.
    call: Opens one call.
    inner: Stands between the name and the arguments.
    name: Regular expression of what may stand before that.
  """

  section: str
  section_end: str
  call: str
  inner: str
  name: str

  @property
  def loose(self) -> str:
    """Regular expression of the marks at which a call may lack its first."""
    return f"{re.escape(self.inner)}|{re.escape(self.section)}"


def _unopened(marks: _Marks, head: str, closing: str):
  """Reads calls as `_named` does, also those that lack the mark before them."""
  call = re.escape(marks.call)
  read_whole = _named(
    head, closing, loose_head=head.replace(call, f"(?:{call})?", 1)
  )
  next_mark = re.compile("|".join(map(re.escape, (*marks[:4], closing))))
  name_before = re.compile(rf"{marks.name}\Z")

  def read(text, mark, strict, kinds):
    if mark[0] == marks.call:
      return read_whole(text, mark, strict, kinds)
    if mark[0] == marks.section:
      after = next_mark.search(text, mark.end())
      end = after.start() if after else len(text)
      said = text[mark.end() : end].strip()
      if after and (
        after[0] in (marks.call, marks.inner)
        or (after[0] == marks.section_end and not said)
      ):
        return [], mark.end()
      return tool_call.read_objects(
        text, mark.end(), marks.section, closing, "arguments"
      )
    first = max(mark.start() - _LONGEST, 0)
    told = list(next_mark.finditer(text, first, mark.start()))
    if told and told[-1][0] == marks.call:
      return [], mark.end()  # What is wrong was said of the mark before.
    name = name_before.search(text, first, mark.start())
    if name is None:
      raise ValueError(f"no name before {marks.inner}")
    return read_whole(text, mark, strict, kinds, name.start())

  return read


def _deepseek(name, arguments, kinds) -> str:
  name = tool_call.name_checked(name, "deepseek")
  return (
    f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>"
    f"{tool_call.to_json(dict(arguments))}<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>"
  )


_DEEPSEEK = _Marks(
  section="<｜tool▁calls▁begin｜>",
  section_end="<｜tool▁calls▁end｜>",
  call="<｜tool▁call▁begin｜>",
  inner="<｜tool▁sep｜>",
  name=r"[^\s<>`{]+[^\S\n]*",
)
# V3 and R1 write a type first and the arguments in a fence; V3.1 neither.
DEEPSEEK = Form(
  opening=_DEEPSEEK.call,
  read=_unopened(
    _DEEPSEEK,
    r"<｜tool▁call▁begin｜>\s*(?:function<｜tool▁sep｜>([^\n<`{]+)\n```json\s|"
    r"([^\n<`{]+)<｜tool▁sep｜>)",
    "<｜tool▁call▁end｜>",
  ),
  spell=_deepseek,
  around="<｜tool▁calls▁(?:begin|end)｜>",
  loose=_DEEPSEEK.loose,
)


def _kimi(name, arguments, kinds) -> str:
  name = tool_call.name_checked(name, "kimi")
  return (
    f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0"
    f"<|tool_call_argument_begin|>{tool_call.to_json(dict(arguments))}"
    "<|tool_call_end|><|tool_calls_section_end|>"
  )


_KIMI = _Marks(
  section="<|tool_calls_section_begin|>",
  section_end="<|tool_calls_section_end|>",
  call="<|tool_call_begin|>",
  inner="<|tool_call_argument_begin|>",
  name=r"[\w.:/-]+\s*",
)
KIMI = Form(
  opening=re.escape(_KIMI.call),
  read=_unopened(
    _KIMI,
    re.escape(_KIMI.call) + r"\s*(?:functions\.)?([^\s<{]+?)(?::\d+)?\s*"
    r"<\|tool_call_argument_begin\|>",
    "<|tool_call_end|>",
  ),
  spell=_kimi,
  around=r"<\|tool_calls_section_(?:begin|end)\|>",
  loose=_KIMI.loose,
)

# Whom a message is for stands in front of the channel, as the template writes
# it, or behind, as models do. A body may follow as JSON or as code.
_TO = r"\bto=(?:functions\.)?([\w.-]+)"
_TYPE = r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
_CHANNEL = r"<\|channel\|>(?:commentary|analysis|final)"
_START = r"(?:(?:<\|start\|>)?assistant)?"
_HEAD = rf"{_START}(?: ?{_TO}\s*{_CHANNEL}{_TYPE}|{_CHANNEL}\s+{_TO}{_TYPE})"
# Models also write the type first.
_ANY_TO = r"<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?\bto="
_LOOSE_HEAD = (
  rf"\s*(?:(?:<\|start\|>)?assistant\s*)?(?:{_TO}\s*{_CHANNEL}{_TYPE}|"
  rf"{_ANY_TO}(?:functions\.)?([\w.-]+){_TYPE})"
)
# A call without its message, too, is meant as one.
_TO_SOMEONE = (
  rf"{_ANY_TO}|<\|start\|>assistant\s*\bto=|"
  r"\A\s*(?:assistant\s*)?\bto=functions\.[\w.-]*\s*(?:<|\Z)|"
  r"\bto=[\w.-]{1,99}\s*<\|channel\|>"
)


def _harmony(name, arguments, kinds) -> str:
  name = tool_call.name_checked(name, "harmony")
  return (
    f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    f"{tool_call.to_json(dict(arguments))}<|call|>"
  )


HARMONY = Form(
  opening=_HEAD.replace(r"([\w.-]+)", r"[\w.-]+"),
  read=_named(_HEAD, "<|call|>", ends_turn=True, loose_head=_LOOSE_HEAD),
  spell=_harmony,
  loose=_TO_SOMEONE,
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
