"""Reads and writes tool calls in the dialects of model families.

    hermes         <tool_call>{"name": "search", "arguments": {"query": "who"}}
                   </tool_call>
    llama          <|python_tag|>{"name": "search", "parameters": {...}}
                   or search.call(query="who"), with ";" between calls
    pythonic       [search(query="who"), look()]
    gemma          a code fence tool_code with search(query="who")
    functiongemma  <start_function_call>call:search{query:<escape>who<escape>}
                   <end_function_call>
    gemma4         <|tool_call>call:search{query:<|"|>who<|"|>}<tool_call|>
    qwen3_coder    <tool_call><function=search><parameter=query>who</parameter>
                   </function></tool_call>
    glm            <tool_call>search<arg_key>query</arg_key>
                   <arg_value>who</arg_value></tool_call>
    deepseek       <｜tool▁call▁begin｜>search<｜tool▁sep｜>{"query": "who"}
                   <｜tool▁call▁end｜>
    kimi           <|tool_call_begin|>functions.search:0
                   <|tool_call_argument_begin|>{"query": "who"}<|tool_call_end|>
    mistral        [TOOL_CALLS][{"name": "search", "arguments": {...}}]
                   or [TOOL_CALLS]search[ARGS]{"query": "who"}
    harmony        <|channel|>commentary to=functions.search
                   <|constrain|>json<|message|>{"query": "who"}<|call|>
    action         <action>go to desk 1</action>

`docs/chat_formats.md` says which models write which. What stands in a thought
is never a call (`envs.calls.scan`), and a mark inside of a string ends nothing.

Strict reading takes exactly these forms. Otherwise text around calls is passed
over, closing tags, fences and outermost brackets may be missing (but not the
tag that alone ends the arguments, in qwen3_coder and glm), JSON may have single
quotes, spare commas and `arguments` for `parameters` (`loose_json`), and one
mark may hold several calls. Calls in Python behind other text begin a line and
are all that follows in the text; see `python_dialects`.

A call that cannot be understood is never left out: it comes back with what is
wrong with it. That includes one whose arguments are cut off, which may have had
more of them, and one with a key twice.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import (
  json_dialects,
  loose_json,
  python_dialects,
  text_dialects,
  tool_call,
  tool_kinds,
)
from steppo_jax.prompts.tool_call import ToolCall

Dialect = Literal[
  "hermes", "llama", "gemma", "action", "pythonic", "functiongemma", "gemma4",
  "qwen3_coder", "glm", "deepseek", "kimi", "mistral", "harmony",
]  # fmt: skip
Which = Literal["all", "first", "last"]

_FORMS: dict[str, tool_call.Form] = {
  "hermes": json_dialects.HERMES,
  "llama": python_dialects.LLAMA,
  "gemma": python_dialects.GEMMA,
  "action": text_dialects.ACTION,
  "pythonic": python_dialects.PYTHONIC,
  "functiongemma": text_dialects.FUNCTIONGEMMA,
  "gemma4": text_dialects.GEMMA4,
  "qwen3_coder": text_dialects.QWEN3_CODER,
  "glm": text_dialects.GLM,
  "deepseek": json_dialects.DEEPSEEK,
  "kimi": json_dialects.KIMI,
  "mistral": json_dialects.MISTRAL,
  "harmony": json_dialects.HARMONY,
}
_OUTSIDE = "text outside of the calls"
_OBJECT = (
  r"""(?:\[\s*)?\{\s*["']?(?:name|function|type|id|arguments|parameters)\b"""
)
_ARGUMENTS = re.compile(r"""["']?(?:arguments|parameters)["']?\s*:""")
# After so many calls that cannot be understood no other is read: time stays
# linear in the text, whatever is in it.
_MOST_FAULTS = 16


def parse(
  text: str,
  dialect: Dialect,
  *,
  strict: bool = False,
  which: Which = "all",
  tools: Sequence[Mapping[str, Any]] | None = None,
  opened: bool = False,
) -> list[ToolCall]:
  """The calls of a text, in their order; [] without any.

  Never raises on a text, whatever is in it.

  Args:
    text: What the policy wrote.
    dialect: How calls are spelt.
    strict: Only the exact form, and nothing but thoughts and white space around
      it; a text that breaks it is one call that cannot be understood.
    which: "first" or "last" keeps one of those that can be understood, or of
      all where none can.
    tools: Schemas as chat templates take them; what cannot be read of them is
      passed over. The dialects whose strings have no quotes ("qwen3_coder",
      "glm") read arguments by their types; see `tool_call.value_of` for what is
      read without. Where calls are written in Python, those behind other text
      are of these tools.
    opened: Whether the prompt opened a thought; see
      `envs.calls.without_thoughts`.

  Raises:
    ValueError: there is no such dialect or choice.
  """
  if which not in get_args(Which):
    raise ValueError(f"which={which!r} is none of {', '.join(get_args(Which))}")
  form = _form(dialect)
  found, rest, _ = _walk(text, form, strict, tools, opened)
  # Without a mark an object is a call only where a mark begins no other.
  sure = any(kind == "marked" for _, kind in found)
  calls = [call for call, kind in found if kind != "object" or not sure]
  outside = re.sub(form.around, "", "".join(rest)) if form.around else rest
  if strict and "".join(outside).strip():
    told = [call for call in calls if call.error]
    return told[:1] or [ToolCall(None, {}, _OUTSIDE)]
  good = [call for call in calls if call.name is not None] or calls
  return {"all": calls, "first": good[:1], "last": good[-1:]}[which]


def thoughts(
  text: str,
  dialect: Dialect,
  *,
  strict: bool = False,
  tools: Sequence[Mapping[str, Any]] | None = None,
  opened: bool = False,
) -> list[envs_calls.Thought]:
  """The thoughts of a text, as `parse` reads it with the same arguments.

  A mark of a thought inside of a call is part of the call.

  Raises:
    ValueError: there is no such dialect.
  """
  return _walk(text, _form(dialect), strict, tools, opened).thoughts


class Reading(NamedTuple):
  """How answers are read: calls and thoughts of a text by the same arguments.

  Where an answer is taken apart by one reading and its tokens are marked by
  another, a thought that is only named inside of a call would be marked.

  Attributes:
    dialect: How calls are spelt.
    strict: See `parse`, as for the others.
    tools: Schemas of the tools.
    opened: Whether the prompt opened a thought.
  """

  dialect: Dialect
  strict: bool = False
  tools: Sequence[Mapping[str, Any]] | None = None
  opened: bool = False

  def calls(self, text: str) -> list[ToolCall]:
    """See `parse`."""
    return parse(text, **self._asdict())

  def thoughts(self, text: str) -> list[envs_calls.Thought]:
    """See `thoughts`."""
    return thoughts(text, **self._asdict())


def _walk(text, form: tool_call.Form, strict, tools, opened) -> envs_calls.Walk:
  """Calls, each with what tells that it is one, and what is else."""
  kinds = tool_kinds.kinds_of(tools)
  opening, start = form.opening, form.strict_start
  if not strict:
    start = form.start
    more = (form.loose, form.behind, _OBJECT if form.untagged else "")
    opening = "|".join(filter(None, (opening, *more)))
  faults = 0

  def read(text: str, mark: re.Match):
    nonlocal faults
    if faults >= _MOST_FAULTS:
      return [], mark.end()
    kind = "marked" if mark.re is start else _kind(mark[0], form)
    try:
      if kind == "object":
        got = _untagged(text, mark.start())
      else:
        got = form.read(text, mark, strict, kinds)
    except (ValueError, RecursionError) as error:
      faults += 1
      if kind == "object" and not _described(text, mark):
        return None
      # All that stands behind a quote that is never closed is in the string.
      cut = isinstance(error, loose_json.Unclosed)
      end = len(text) if cut else mark.end()
      got = [ToolCall(None, {}, str(error))], end
    return got and ([(call, kind) for call in got[0]], got[1])

  return envs_calls.scan(text, opening, read, start=start, opened=opened)


def _kind(mark: str, form: tool_call.Form) -> str:
  """What begins a call: a mark, an object, or words behind other text."""
  if re.match(_OBJECT, mark):
    return "object"
  behind = form.behind and re.match(form.behind, mark)
  return "behind" if behind else "marked"


def spell(
  name: str,
  arguments: Mapping[str, Any],
  dialect: Dialect,
  *,
  tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
  """A call in the exact form of a dialect; "action" tells one argument alone.

  `parse` reads it back, given the same `tools` or none, if the arguments are
  JSON and of the types that the schemas name.

  Raises:
    ValueError: there is no such dialect; "action" with several arguments; or
      the dialect cannot spell the name, or JSON an argument (NaN).
  """
  return _form(dialect).spell(name, arguments, tool_kinds.kinds_of(tools))


def _form(dialect) -> tool_call.Form:
  if dialect not in _FORMS:
    raise ValueError(
      f"dialect={dialect!r} is none of {', '.join(get_args(Dialect))}"
    )
  return _FORMS[dialect]


def canonical(calls: Sequence[ToolCall]) -> str:
  """The calls as environments read them, faults included.

  An action is its text alone; other calls are JSON in <tool_call>. One that
  cannot be understood is an object without a name, which environments count as
  invalid and answer so.
  """
  found = []
  for call in calls:
    if call.name == "action" and isinstance(call.arguments.get("action"), str):
      found.append(call.arguments["action"])
      continue
    record = {"name": call.name, "arguments": dict(call.arguments)}
    if call.name is None:
      record = {"error": call.error}
    # A tag inside of a string must not close the call.
    body = tool_call.without_marks(tool_call.to_json(record))
    found.append(f"<tool_call>{body}</tool_call>")
  return "\n".join(found)


def _untagged(text: str, at: int) -> tuple[list[ToolCall], int]:
  """The calls of an object or a list, without any mark; [] for another.

  What stands in a list beside a call is meant as one, also where the text ends
  before the list does. Another list that cannot be read is read object by
  object.
  """
  try:
    record, end = tool_call.value_at(text, at)
  except ValueError as error:
    if text[at] != "[":
      raise
    record, end = tool_call.value_at(text, text.index("{", at))
    if isinstance(error, loose_json.Unclosed) and tool_call.is_call(record):
      return _cut_list(text, end, record, str(error))
  if not tool_call.is_call(record):
    return [], end
  return tool_call.of_records(record, "arguments"), end


def _cut_list(text, at, record, error) -> tuple[list[ToolCall], int]:
  """The calls of a list that the text cuts off, and the one that is cut."""
  calls = tool_call.of_records(record, "arguments")
  try:
    while found := re.compile(r"[\s,]*(?=\{)").match(text, at):
      record, at = tool_call.value_at(text, found.end())
      calls += tool_call.of_records(record, "arguments")
  except ValueError:
    pass
  return [*calls, ToolCall(None, {}, error)], len(text)


def _described(text: str, mark: re.Match) -> bool:
  """Whether a broken object was meant as a call: it has arguments."""
  again = re.compile(_OBJECT).search(text, mark.end())
  end = again.start() if again else len(text)
  return _ARGUMENTS.search(text, mark.start(), end) is not None
