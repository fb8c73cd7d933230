"""Reads tool calls in the dialects of model families.

    hermes   <tool_call>{"name": "search", "arguments": {"query": "who"}}
             </tool_call>                       (Qwen, Hermes, SmolLM)
    llama    <|python_tag|>{"name": "search", "parameters": {"query": "who"}}
             or search.call(query="who"), several behind each other with ";"
    gemma    ```tool_code
             search(query="who")
             ```                                or JSON in such a fence
    action   <action>go to desk 1</action>

What stands in `<think>...</think>` is never a call. Strict reading takes
exactly these forms. Otherwise text around calls is passed over, closing tags,
fences and brackets may be missing, and JSON may have single quotes, spare
commas and `arguments` for `parameters`; see `loose_json`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import loose_json

Dialect = Literal["hermes", "llama", "gemma", "action"]
Which = Literal["all", "first", "last"]

_OUTSIDE = "text outside of the calls"
_OPEN = {"hermes": "<tool_call>", "action": "<action>"}
_PYTHON_TAG = "<|python_tag|>"
_FENCE = re.compile(r"```(tool_code|tool_call|json|python)?[^\S\n]*\n?")
_OBJECT = re.compile(r"""\{\s*["']?(name|function)\b""")
# Objects without a tag that are tried in a text.
_TRIED = 8


class ToolCall(NamedTuple):
  """One call.

  Attributes:
    name: The tool, None for a call that cannot be understood. "action" in the
      dialect of that name.
    arguments: By name.
    error: What is wrong with it, "" without a fault.
  """

  name: str | None
  arguments: Mapping[str, Any]
  error: str = ""


def parse(
  text: str, dialect: Dialect, *, strict: bool = False, which: Which = "all"
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

  Raises:
    ValueError: there is no such dialect or choice.
  """
  for name, value, known in (
    ("dialect", dialect, Dialect), ("which", which, Which)
  ):  # fmt: skip
    if value not in get_args(known):
      raise ValueError(
        f"{name}={value!r} is none of {', '.join(get_args(known))}"
      )
  text = envs_calls.without_thoughts(text)
  read = {"llama": _llama, "gemma": _gemma}.get(dialect)
  if read is None:
    calls = _tagged(text, dialect, strict)
  else:
    calls = read(text, strict)
  if strict and any(call.error == _OUTSIDE for call in calls):
    return [ToolCall(None, {}, _OUTSIDE)]
  good = [call for call in calls if call.name is not None] or calls
  return {"all": calls, "first": good[:1], "last": good[-1:]}[which]


def spell(name: str, arguments: Mapping[str, Any], dialect: Dialect) -> str:
  """A call in the exact form of a dialect; "action" tells one argument alone.

  Raises:
    ValueError: there is no such dialect, or "action" with several arguments.
  """
  body = lambda key: json.dumps(
    {"name": name, key: dict(arguments)}, ensure_ascii=False
  )
  if dialect == "hermes":
    return f"<tool_call>{body('arguments')}</tool_call>"
  if dialect == "llama":
    return f"{_PYTHON_TAG}{body('parameters')}"
  if dialect == "gemma":
    listed = ", ".join(f"{k}={json.dumps(v)}" for k, v in arguments.items())
    return f"```tool_code\n{name}({listed})\n```"
  if dialect != "action":
    raise ValueError(
      f"dialect={dialect!r} is none of {', '.join(get_args(Dialect))}"
    )
  (value,) = arguments.values()
  return f"<action>{value}</action>"


def canonical(calls: Sequence[ToolCall]) -> str:
  """The calls as environments read them; those with a fault are left out.

  An action is its text alone; other calls are JSON in <tool_call>.
  """
  found = []
  for call in calls:
    if call.name == "action" and isinstance(call.arguments.get("action"), str):
      found.append(call.arguments["action"])
    elif call.name is not None:
      record = {"name": call.name, "arguments": dict(call.arguments)}
      body = json.dumps(record, ensure_ascii=False)
      # A tag inside of a string must not close the call.
      body = body.replace("<", "\\u003c")
      found.append(f"<tool_call>{body}</tool_call>")
  return "\n".join(found)


def _tagged(text: str, dialect: str, strict: bool) -> list[ToolCall]:
  """Calls between an opening and a closing tag."""
  opening = _OPEN[dialect]
  closing = opening.replace("<", "</")
  before, *bodies = text.split(opening)
  calls = []
  if strict and before.strip():
    return [ToolCall(None, {}, _OUTSIDE)]
  for body in bodies:
    body, closed, behind = body.partition(closing)
    if strict and not closed:
      calls.append(ToolCall(None, {}, f"{opening} is never closed"))
    elif strict and behind.strip():
      return [ToolCall(None, {}, _OUTSIDE)]
    elif dialect == "action":
      action = body.strip()
      fault = ToolCall(None, {}, f"{opening} is empty")
      calls.append(ToolCall("action", {"action": action}) if action else fault)
    else:
      calls.append(_json_call(body, "arguments", strict))
  if not bodies and not strict and dialect == "hermes":
    return _untagged(text)
  return calls


def _llama(text: str, strict: bool) -> list[ToolCall]:
  """Calls behind each other, all JSON or all Python."""
  before, tag, body = text.partition(_PYTHON_TAG)
  if not tag:
    before, body = "", text
  if strict and before.strip():
    return [ToolCall(None, {}, _OUTSIDE)]
  if strict:
    return _strict_sequence(body)
  calls, at = [], 0
  while True:
    at = loose_json.skip(body, at)
    try:
      if body[at : at + 1] == "{":
        record, at = loose_json.read(body, at)
        calls.append(_call_of(record, "parameters", False))
      else:
        name, arguments, at = loose_json.read_call(body, at)
        calls.append(ToolCall(name, arguments))
    except ValueError as error:
      if calls:
        return calls
      found = _untagged(body)
      fault = [ToolCall(None, {}, f"no call behind the tag: {error}")]
      return found or (fault if tag else [])
    at = loose_json.skip(body, at)
    if body[at : at + 1] != ";":
      return calls
    at += 1


def _strict_sequence(body: str) -> list[ToolCall]:
  """JSON objects or Python calls with ";" between them, and nothing else."""
  calls, at = [], loose_json.skip(body, 0)
  decoder = json.JSONDecoder()
  while at < len(body):
    try:
      if body[at] == "{":
        record, at = decoder.raw_decode(body, at)
        calls.append(_call_of(record, "parameters", True))
      else:
        name, arguments, at = loose_json.read_call(body, at)
        calls.append(ToolCall(name, arguments))
    except (ValueError, RecursionError):
      return [ToolCall(None, {}, _OUTSIDE)]
    at = loose_json.skip(body, at)
    if at < len(body):
      if body[at] != ";":
        return [ToolCall(None, {}, _OUTSIDE)]
      at = loose_json.skip(body, at + 1)
  return calls


def _gemma(text: str, strict: bool) -> list[ToolCall]:
  """Calls in fences of code, one a line or one JSON object."""
  calls, at, last = [], 0, 0
  while opening := _FENCE.search(text, at):
    end = text.find("```", opening.end())
    named = opening[1] in (("tool_code",) if strict else ("tool_code",
                           "tool_call", "json", "python", None))  # fmt: skip
    if strict and (
      not named or end < 0 or text[last : opening.start()].strip()
    ):
      return [ToolCall(None, {}, _OUTSIDE)]
    body = text[opening.end() : end if end >= 0 else len(text)]
    calls += _fenced(body, strict)
    if end < 0:
      return calls
    at = last = end + 3
  if strict and text[last:].strip():
    return [ToolCall(None, {}, _OUTSIDE)]
  return calls or ([] if strict else _untagged(text))


def _fenced(body: str, strict: bool) -> list[ToolCall]:
  if body.lstrip().startswith(("{", "[")):
    return [_json_call(body, "arguments", strict)]
  calls, at = [], loose_json.skip(body, 0)
  while at < len(body):
    try:
      # Printing the result of a call is how the family was shown to call.
      inner = at + 6 if body.startswith("print(", at) and not strict else at
      name, arguments, at = loose_json.read_call(body, inner)
    except ValueError as error:
      return [*calls, ToolCall(None, {}, f"the fence holds no call: {error}")]
    calls.append(ToolCall(name, arguments))
    at = loose_json.skip(body, at)
    if inner != at and body[at : at + 1] in (")", ";"):
      at = loose_json.skip(body, at + 1)
  return calls


def _json_call(body: str, key: str, strict: bool) -> ToolCall:
  """The call of one body, in JSON or, where that is allowed, nearly so."""
  try:
    return _call_of(json.loads(body), key, strict)
  except (ValueError, RecursionError):
    if strict:
      return ToolCall(None, {}, "the tool call is not JSON")
  start = body.find("{")
  try:
    if start < 0:
      raise ValueError("no object")
    return _call_of(loose_json.read(body, start)[0], key, False)
  except ValueError as error:
    return ToolCall(None, {}, f"the tool call is not JSON: {error}")


def _untagged(text: str) -> list[ToolCall]:
  """Objects that name a tool, without any tag."""
  calls, at = [], 0
  for _ in range(_TRIED):
    found = _OBJECT.search(text, at)
    if not found:
      break
    try:
      record, at = loose_json.read(text, found.start())
      calls.append(_call_of(record, "arguments", False))
    except ValueError:
      at = found.end()
  return [call for call in calls if call.name is not None]


def _call_of(record: Any, key: str, strict: bool) -> ToolCall:
  """The call that a JSON object describes."""
  fault = lambda text: ToolCall(None, {}, text)
  if not strict:
    if isinstance(record, list) and len(record) == 1:
      record = record[0]
    if isinstance(record, dict) and isinstance(record.get("function"), dict):
      record = record["function"]
  if not isinstance(record, dict) or not isinstance(record.get("name"), str):
    return fault(f'expected {{"name": ..., "{key}": {{...}}}}')
  if strict and set(record) != {"name", key}:
    return fault("unknown keys")
  arguments = record.get(key)
  if not strict and arguments is None:
    other = "parameters" if key == "arguments" else "arguments"
    arguments = record.get(other, {})
  if isinstance(arguments, str) and not strict:
    try:
      arguments = loose_json.read(arguments)[0]
    except ValueError:
      return fault("the arguments are not JSON")
  if not isinstance(arguments, dict):
    return fault(f"{key} of {record['name']} are no object")
  return ToolCall(record["name"], arguments)
