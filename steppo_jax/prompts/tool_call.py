"""What the dialects of tool calls share: forms, records, texts in tags."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import loose_json, tool_kinds
from steppo_jax.prompts.tool_kinds import STRING, Kinds

_NAME = re.compile(r"[^\W\d][\w.:/-]*")


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


class Form(NamedTuple):
  """How one dialect writes calls.

  Attributes:
    opening: Regular expression of the marks that begin a call.
    read: Takes the text, the match of a beginning, whether to be strict, and
      the kinds of arguments; gives calls and the place behind them, or None
      where it is no call after all. Raises ValueError for one that cannot be
      understood.
    spell: Writes a call of a name and arguments, given the kinds.
    start: What begins a call without a mark, if an answer begins with it.
    strict_start: The same where reading is strict.
    loose: Regular expression of marks that begin a call where reading is loose.
    behind: Regular expression of what may begin a call without a mark behind
      other text, where reading is loose.
    around: Regular expression of marks around all calls, which say nothing.
    untagged: Whether objects that describe a call are read without any mark.
  """

  opening: str
  read: Callable[..., tuple[list[ToolCall], int] | None]
  spell: Callable[[str, Mapping[str, Any], Kinds], str]
  start: re.Pattern | None = None
  strict_start: re.Pattern | None = None
  loose: str = ""
  behind: str = ""
  around: str = ""
  untagged: bool = True


def to_json(value: Any) -> str:
  """A value as JSON; raises ValueError for what JSON has no form for."""
  return json.dumps(value, ensure_ascii=False, allow_nan=False)


def without_marks(text: str) -> str:
  """JSON whose strings hold no "<", so that they spell no mark either."""
  return text.replace("<", "\\u003c")


def name_checked(name: str, dialect: str) -> str:
  """The name of a tool, where a dialect has no quotes for it.

  Raises:
    ValueError: the dialect cannot spell it.
  """
  if not _NAME.fullmatch(name):
    raise ValueError(f"the dialect {dialect} cannot spell the tool {name!r}")
  return name


def text_of(
  value: Any, kinds: frozenset[str] | None, unsafe: re.Pattern
) -> str:
  """A value as it stands between tags: a string as it is, all else as JSON.

  A string that would be read as something else, or that holds what would end
  it, stands in quotes as JSON.

  Args:
    value: Any value of JSON.
    kinds: The types that it may have; None where they are not known.
    unsafe: What a string may not hold as it is.
  """
  if not isinstance(value, str):
    return without_marks(to_json(value))
  if not unsafe.search(value) and value_of(value, kinds, unsafe) == value:
    return value
  return without_marks(to_json(value))


def value_of(text: str, kinds: frozenset[str] | None, unsafe: re.Pattern):
  """The value that stands between tags; see `text_of`.

  By the types of the tool's schema where they are given: a text that is to be a
  string stays as it is, and one that is to be something else is read as JSON or
  as a value of Python, such as True, and stays a text if it is neither. Without
  a schema it is read as JSON, and stays a text where it is none or a string.
  """
  if text.startswith('"'):
    try:
      inner, end = envs_calls.read_json(text)
    except ValueError:
      inner, end = None, 0
    if end == len(text) and text_of(inner, kinds, unsafe) == text:
      return inner
  if kinds == STRING:
    return text
  try:
    if kinds is None:
      value, end = envs_calls.read_json(text)
    else:
      value, end = loose_json.read(text, ends=0)
  except ValueError:
    return text
  if text[end:].strip() or isinstance(value, str):
    return text
  fits = kinds is None or tool_kinds.kind_of(value) in kinds
  return value if fits else text


def is_call(record: Any) -> bool:
  """Whether an object describes a call, well or badly.

  One with a name alone is an answer in JSON.
  """
  if isinstance(record, list):
    return any(is_call(one) for one in record)
  if not isinstance(record, dict):
    return False
  if isinstance(record.get("function"), dict):
    return True
  named = "name" in record or "function" in record
  return named and ("arguments" in record or "parameters" in record)


def of_record(
  record: Any, key: str, strict: bool, optional: Sequence[str] = ()
) -> ToolCall:
  """The call that a JSON object describes.

  Args:
    record: What was read.
    key: Where the dialect has the arguments, "arguments" or "parameters".
    strict: Whether there may be no other key.
    optional: Keys that there may be nevertheless.
  """
  fault = lambda text: ToolCall(None, {}, text)
  wanted = f'expected {{"name": ..., "{key}": {{...}}}}'
  if not isinstance(record, dict):
    return fault(wanted)
  other = "parameters" if key == "arguments" else "arguments"
  name = record.get("name")
  if not strict:
    if isinstance(record.get("function"), dict):
      record = record["function"]
      name = record.get("name")
    elif name is None:
      name = record.get("function")
    key = key if key in record else other
  if not isinstance(name, str) or key not in record:
    return fault(wanted)
  if strict and not {"name", key} <= set(record) <= {"name", key, *optional}:
    return fault("unknown keys")
  arguments = record[key]
  if not strict and isinstance(arguments, str):
    try:
      arguments, end = loose_json.read(text := arguments, ends=0)
      if text[end:].strip():
        raise ValueError("something behind the object")
    except ValueError:
      return fault("the arguments are not JSON")
  if not strict and arguments is None:
    arguments = {}
  if not isinstance(arguments, dict):
    return fault(f"{key} of {name} are no object")
  return ToolCall(name, arguments)


def of_records(record: Any, key: str) -> list[ToolCall]:
  """The calls of one object or of a list of them."""
  records = record if isinstance(record, list) else [record]
  return [of_record(one, key, False) for one in records or [None]]


def value_at(text: str, at: int) -> tuple[Any, int]:
  """A value that is JSON or, where it is not, nearly so."""
  try:
    return envs_calls.read_json(text, at)
  except ValueError:
    return loose_json.read(text, at)


def read_objects(
  text: str, at: int, opening: str, closing: str, key: str
) -> tuple[list[ToolCall], int]:
  """The calls between two tags, of one object or several, and their end.

  Objects may stand behind each other, one a line, or in a list. The closing tag
  may be missing at the end of the text, and what stands between an object and
  it is passed over.

  Raises:
    ValueError: there is no object, or one that cannot be understood.
  """
  tags = "|".join(map(re.escape, (opening, closing)))
  first = re.compile(rf"{tags}|[{{\[]").search(text, at)
  if first is None or first[0] not in ("{", "["):
    raise ValueError("the tool call is not JSON: no object")
  calls, at = [], first.start()
  while True:
    try:
      record, at = value_at(text, at)
    except ValueError as error:
      record, at = _without_brackets(text, at, closing, error)
    calls += of_records(record, key)
    at = re.compile(r"[\s,;`]*").match(text, at).end()
    another = text[at : at + 1] in ("{", "[")
    if not another or text.startswith(opening, at):
      return calls, behind(text, at, opening, closing)


def _without_brackets(text, at, closing, error):
  """An object whose last brackets are missing before the closing tag."""
  close = text.find(closing, at)
  if close >= 0:
    try:
      ends = loose_json.DEEPEST
      return loose_json.read(text[:close], at, ends=ends)[0], close
    except ValueError:
      pass
  cut = isinstance(error, loose_json.Unclosed)
  made = loose_json.Unclosed if cut else ValueError
  raise made(f"the tool call is not JSON: {error}") from error


def behind(text: str, at: int, opening: str, closing: str) -> int:
  """The place behind a closing tag, if none is opened before it."""
  tags = "|".join(map(re.escape, (opening, closing)))
  found = re.compile(tags).search(text, at)
  return found.end() if found and found[0] == closing else at


def closed(text: str, at: int, closing: str) -> int:
  """The place behind a closing tag that has to come next.

  Raises:
    Unclosed: the text ends before.
    ValueError: something else comes.
  """
  at = loose_json.skip(text, at)
  if text.startswith(closing, at):
    return at + len(closing)
  if at >= len(text):
    raise loose_json.Unclosed(f"cut off before {closing}")
  raise ValueError(f"something else than {closing} at character {at}")
