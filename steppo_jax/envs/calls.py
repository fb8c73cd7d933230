"""Reads tool calls out of what a policy wrote.

Three forms are understood, and calls are returned in the order in which they
stand in the text:

    <search>who directed Big Fish</search>
    <tool_call>{"name": "search", "arguments": {"query": "..."}}</tool_call>
    search who directed Big Fish

The last is for small models, and one rule holds for it: without any tag of a
tool, the whole text is one call, the tool's name and, after white space, its
argument. What stands in `<think>...</think>` is never a call.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_JSON_TAG = "tool_call"
_OUTSIDE = "text outside of the calls"
_THOUGHT, _THOUGHT_END = "<think>", "</think>"

_TAGGED = re.compile(r"<(\w+)>(.*)</\1>", re.DOTALL)


class Call(NamedTuple):
  """One call.

  Attributes:
    name: The tool, or None for a call that cannot be understood.
    argument: Its argument without outer white space, never empty, or what is
      wrong with the call.
  """

  name: str | None
  argument: str


def parse(
  text: str, tools: Mapping[str, str], *, most: int, strict: bool = False
) -> list[Call]:
  """The first calls in a text; [] if it has none.

  Takes time linear in the text, whatever is in it.

  Args:
    text: What the policy wrote.
    tools: Name of each tool and the key of its only argument in JSON.
    most: Calls after which reading stops, at least 1.
    strict: Only the two forms with tags, nothing but thoughts and white space
      between them, and JSON objects with exactly `name` and `arguments` and in
      these exactly the key of the tool. Otherwise other text is passed over,
      further keys are allowed, and `arguments` may be JSON in a string. A text
      that breaks a strict rule is one call that cannot be understood.
  """
  text = without_thoughts(text)
  names = "|".join(map(re.escape, (_JSON_TAG, *tools)))
  opening = re.compile(f"<({names})>")
  calls, start, unclosed = [], 0, set()
  while len(calls) < most:
    found = opening.search(text, start)
    if found is None:
      break
    if strict and text[start : found.start()].strip():
      return [Call(None, _OUTSIDE)]
    name, begin = found[1], found.end()
    end = -1 if name in unclosed else text.find(f"</{name}>", begin)
    if end < 0:
      # Looked for once: a text of nothing but opening tags stays linear.
      if name not in unclosed:
        calls.append(Call(None, f"<{name}> is never closed"))
      unclosed.add(name)
      start = begin
      continue
    calls.append(_call(name, text[begin:end].strip(), tools, strict))
    start = end + len(name) + len("</>")
  if strict and len(calls) < most and text[start:].strip():
    return [Call(None, _OUTSIDE)]
  return calls or ([] if strict else _compact(text, tools))


def without_thoughts(text: str) -> str:
  """A text without what stands inside <think>, closed or not."""
  if _THOUGHT not in text:
    return text
  kept, start = [], 0
  while (found := text.find(_THOUGHT, start)) >= 0:
    kept.append(text[start:found])
    end = text.find(_THOUGHT_END, found)
    if end < 0:
      return "".join(kept)
    start = end + len(_THOUGHT_END)
  return "".join([*kept, text[start:]])


def _call(name, body, tools, strict) -> Call:
  if name != _JSON_TAG:
    return Call(name, body) if body else Call(None, f"<{name}> is empty")
  try:
    record = json.loads(body)
  except (ValueError, RecursionError):
    return Call(None, "the tool call is not JSON")
  if not isinstance(record, dict) or not isinstance(record.get("name"), str):
    return Call(None, 'expected {"name": ..., "arguments": {...}}')
  name, arguments = record["name"], record.get("arguments")
  if name not in tools:
    return Call(None, "there is no such tool")
  if isinstance(arguments, str) and not strict:
    try:
      arguments = json.loads(arguments)
    except (ValueError, RecursionError):
      return Call(None, "the arguments are not JSON")
  key = tools[name]
  if not isinstance(arguments, dict) or not isinstance(arguments.get(key), str):
    return Call(None, f"{name} needs a string {key!r}")
  if strict and (set(record) != {"name", "arguments"} or len(arguments) != 1):
    return Call(None, "unknown keys")
  value = arguments[key].strip()
  return Call(name, value) if value else Call(None, f"{key!r} is empty")


def _compact(text, tools) -> list[Call]:
  name, *argument = text.split(maxsplit=1)[:2] or [""]
  if name not in tools or not argument:
    return []
  return [Call(name, argument[0].rstrip())]


def plain(actions: Sequence[str]) -> list[str]:
  """Tagged calls in the form for small models: "search words"."""
  return [_TAGGED.sub(r"\1 \2", action) for action in actions]
