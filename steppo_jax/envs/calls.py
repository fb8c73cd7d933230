"""Reads thoughts and tool calls out of what a policy wrote.

A thought stands between a mark such as `<think>` and its end, and it never
acts: no call in it is made, and no text of it is read. Thoughts are left out
here for everyone who reads an answer, environments and prompts alike.

Environments understand three forms of calls, which are returned in the order
in which they stand in the text:

    <search>who directed Big Fish</search>
    <tool_call>{"name": "search", "arguments": {"query": "..."}}</tool_call>
    search who directed Big Fish

The last is for small models, and one rule holds for it: without any tag of a
tool, the whole text is one call, the tool's name and, after white space, its
argument.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

_JSON_TAG = "tool_call"
_OUTSIDE = "text outside of the calls"
_TAGGED = re.compile(r"<(\w+)>(.*)</\1>", re.DOTALL)
_SPACE = re.compile(r"\s*")

# Where thoughts begin, and the ends that belong to each beginning: Qwen and
# DeepSeek (Seed and MiniMax with a prefix), Mistral, Cohere, Gemma 4, and
# Harmony, where a thought is a message in the channel of analysis.
_TAG = r"(?:\w+:)?think(?:ing)?(?::\w+)?"
_THOUGHT = re.compile(
  rf"(?P<tag><(?P<name>{_TAG})>)"
  r"|(?P<mistral>\[THINK\])|(?P<cohere><\|START_THINKING\|>)"
  r"|(?P<gemma><\|channel>thought\b)"
  r"|(?P<harmony><\|channel\|>analysis(?!\s*to=)[^<]*<\|message\|>)"
)
_ENDS = {
  "mistral": re.compile(r"\[/THINK\]"),
  "cohere": re.compile(r"<\|END_THINKING\|>"),
  "gemma": re.compile(r"<channel\|>"),
  "harmony": re.compile(r"<\|end\|>|(?=<\|(?:start|channel|return)\|>)"),
}
_END = re.compile(
  rf"</{_TAG}>|\[/THINK\]|<\|END_THINKING\|>|<channel\|>"
)  # fmt: skip
# What Harmony writes around a message to the user.
_HARMONY = (
  r"(?:<\|start\|>assistant)?<\|channel\|>(?:final|commentary)(?!\s*to=)[^<]*"
  r"<\|message\|>|<\|(?:end|return|call)\|>"
)

# Takes the text and the mark of a call; gives what was read there and the place
# behind it, or None where it is no call after all.
Reader = Callable[[str, re.Match], tuple[Sequence[Any], int] | None]


class Call(NamedTuple):
  """One call.

  Attributes:
    name: The tool, or None for a call that cannot be understood.
    argument: Its argument without outer white space, never empty, or what is
      wrong with the call.
  """

  name: str | None
  argument: str


class Thought(NamedTuple):
  """A thought with the marks around it.

  Attributes:
    first: Its first character.
    behind: The character behind it.
    closed: Whether a mark ends it; if none does, it ends with the text.
  """

  first: int
  behind: int
  closed: bool = True


class Walk(NamedTuple):
  """What stands in an answer.

  Attributes:
    found: What was read of the calls, in order.
    rest: The texts outside of thoughts and calls.
    thoughts: All thoughts, in order.
  """

  found: list[Any]
  rest: list[str]
  thoughts: list[Thought]


def scan(
  text: str,
  opening: str = "",
  read: Reader | None = None,
  *,
  start: re.Pattern | None = None,
  opened: bool = False,
) -> Walk:
  """Walks through an answer, over thoughts and calls.

  What stands first decides: a mark of a call inside of a thought is part of the
  thought, and a mark of a thought inside of a call is part of the call. The
  first end closes a thought, as the chat templates of released models read it.
  An end without a beginning closes a thought that began with the text, as it
  does where the prompt opened it: all that stands before is dropped.

  Args:
    text: What the policy wrote.
    opening: Regular expression of the marks that begin a call; "" for none.
    read: Reads the call behind such a mark.
    start: What begins a call without a mark, if nothing but thoughts and white
      space stands before it.
    opened: Whether the text begins inside of a thought.

  Returns:
    What `read` gave, the texts outside of thoughts and calls, and the thoughts.
  """
  found: list[Any] = []
  rest: list[str] = []
  thoughts: list[Thought] = []
  at = 0
  if opened:
    end = _END.search(text)
    if end is None:
      return Walk([], [], [Thought(0, len(text), False)])
    at = end.end()
    thoughts.append(Thought(0, at))
  pattern = _pattern(opening, "<|channel|>" in text)
  blank = True
  while True:
    if start and blank and not found:
      mark = start.match(text, _SPACE.match(text, at).end())
      if mark and (got := read(text, mark)) is not None:
        found += got[0]
        at = got[1]
    mark = pattern.search(text, at)
    if mark is None:
      return Walk(found, [*rest, text[at:]], thoughts)
    rest.append(text[at : mark.start()])
    at = mark.end()
    if mark.lastgroup == "call":
      got = read(text, mark)
      if got is None:
        rest.append(mark[0])
      else:
        found += got[0]
        at = got[1]
    elif mark.lastgroup == "end":
      found, rest, blank, thoughts = [], [], True, [Thought(0, at)]
      continue
    elif mark.lastgroup != "around":
      end = _end_of(mark).search(text, at)
      if end is None:
        thoughts.append(Thought(mark.start(), len(text), False))
        return Walk(found, rest, thoughts)
      at = end.end()
      thoughts.append(Thought(mark.start(), at))
    blank = blank and not rest[-1].strip()


def _pattern(opening: str, harmony: bool) -> re.Pattern:
  parts = [f"(?P<call>{opening})"] if opening else []
  # One glance at most characters is enough.
  parts += [rf"(?=[<\[])(?:{_THOUGHT.pattern}|(?P<end>{_END.pattern}))"]
  parts += [f"(?P<around>{_HARMONY})"] if harmony else []
  return re.compile("|".join(parts))


def _end_of(mark: re.Match) -> re.Pattern:
  """What ends the thought that a mark begins."""
  found = _ENDS.get(mark.lastgroup)
  return found or re.compile(f"</{re.escape(mark['name'])}>")


def without_thoughts(text: str, *, opened: bool = False) -> str:
  """A text without its thoughts, closed or not.

  Args:
    text: What the policy wrote.
    opened: Whether the prompt opened a thought, so that the text begins inside
      of it: all of it is a thought if that is never closed.
  """
  return "".join(scan(text, opened=opened).rest)


def behind_thought(text: str) -> int:
  """The place behind the first thought of a text; 0 without a whole one."""
  mark = _pattern("", False).search(text)
  if mark is None:
    return 0
  end = (
    mark if mark.lastgroup == "end" else _end_of(mark).search(text, mark.end())
  )
  return end.end() if end else 0


def opens_thought(prompt: str) -> bool:
  """Whether the last words of a prompt begin a thought and do not end it."""
  at = 0
  while mark := _THOUGHT.search(prompt, at):
    end = _end_of(mark).search(prompt, mark.end())
    if end is None:
      return True
    at = end.end()
  return False


def read_json(text: str, at: int = 0) -> tuple[Any, int]:
  """The JSON value that begins at a place of a text, behind white space.

  Returns:
    The value and the place behind it.

  Raises:
    ValueError: there is none, an object has a key twice, or a number is none of
      JSON (NaN, Infinity) or too large for a float.
  """
  try:
    return _DECODER.raw_decode(text, _SPACE.match(text, at).end())
  except RecursionError as error:
    raise ValueError("nested too deep") from error


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """A mapping of pairs; raises ValueError where a key occurs twice."""
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f"the key {twice!r} occurs twice")
  return found


def finite(text: str) -> float:
  """The number that a text spells; raises ValueError where it is too large."""
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"{text[:40]} is too large for a number")
  return value


def _no_number(text: str):
  raise ValueError(f"{text} is no number of JSON")


_DECODER = json.JSONDecoder(
  object_pairs_hook=unique, parse_float=finite, parse_constant=_no_number
)


def parse(
  text: str, tools: Mapping[str, str], *, most: int, strict: bool = False
) -> list[Call]:
  """The first calls in a text; [] if it has none.

  Takes time linear in the text, whatever is in it. A tag inside of a JSON
  string ends no call.

  Args:
    text: What the policy wrote.
    tools: Name of each tool and the key of its only argument in JSON.
    most: How many calls are returned at most, at least 1.
    strict: Only the two forms with tags, nothing but thoughts and white space
      between them, and in a tag one JSON object with exactly `name` and
      `arguments` and in these exactly the key of the tool. Otherwise other text
      is passed over, further keys are allowed, `arguments` may be JSON in a
      string, and a tag may hold several objects or lists of them. A text that
      breaks a strict rule is one call that cannot be understood.
  """
  names = "|".join(map(re.escape, (_JSON_TAG, *tools)))
  unclosed: set[str] = set()

  def read(text: str, mark: re.Match):
    name, begin = mark[0][1:-1], mark.end()
    # Looked for once: a text of nothing but opening tags stays linear.
    end = -1 if name in unclosed else text.find(f"</{name}>", begin)
    if end < 0:
      fault = Call(None, f"<{name}> is never closed")
      found = [] if name in unclosed else [fault]
      unclosed.add(name)
      return found, begin
    if name == _JSON_TAG:
      return _json_calls(text, begin, end, tools, strict)
    body = text[begin:end].strip()
    found = Call(name, body) if body else Call(None, f"<{name}> is empty")
    return [found], end + len(name) + len("</>")

  calls, rest, _ = scan(text, f"<(?:{names})>", read)
  outside = "".join(rest)
  if strict and outside.strip():
    return [Call(None, _OUTSIDE)]
  return calls[:most] or ([] if strict else _compact(outside, tools))


def _json_calls(text, at, end, tools, strict):
  """The calls of one tag, and the place behind it."""
  closing = f"</{_JSON_TAG}>"
  calls = []
  while True:
    try:
      record, at = read_json(text, at)
    except ValueError as error:
      why = f"the tool call is not JSON: {error}"
      # All that stands behind a quote that is never closed is in the string.
      cut = str(error).startswith("Unterminated")
      behind = len(text) if cut else max(at, end + len(closing))
      return [*calls, Call(None, why)], behind
    records = record if isinstance(record, list) and not strict else [record]
    calls += [_call(one, tools, strict) for one in records or [None]]
    at = _SPACE.match(text, at).end()
    if text.startswith(closing, at):
      return calls, at + len(closing)
    if text[at : at + 1] not in ("{", "[", ",") or strict:
      fault = Call(None, f"no {closing} behind the object")
      calls = [fault] if strict else [*calls, fault]
      end = text.find(closing, at)
      return calls, end + len(closing) if end >= 0 else len(text)
    at += text[at] == ","


def _call(record, tools, strict) -> Call:
  if not isinstance(record, dict) or not isinstance(record.get("name"), str):
    return Call(None, 'expected {"name": ..., "arguments": {...}}')
  name, arguments = record["name"], record.get("arguments")
  if name not in tools:
    return Call(None, "there is no such tool")
  if isinstance(arguments, str) and not strict:
    try:
      arguments = read_json(arguments)[0]
    except ValueError:
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
