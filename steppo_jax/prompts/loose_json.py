"""JSON as models write it: other quotes, spare commas, missing ends."""

import re
from typing import Any

# Deeper than any call, and shallow enough for Python's stack.
DEEPEST = 64
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"-?\d{1,300}(\.\d+)?([eE][-+]?\d{1,3})?(?![\w.])")
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_PLAIN = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_CONSTANTS = {
  "true": True, "True": True, "false": False, "False": False, "null": None,
  "None": None,
}  # fmt: skip
_CLOSERS = {"{": "}", "[": "]", "(": ")"}


def read(text: str, at: int = 0) -> tuple[Any, int]:
  """The value that begins at a place of a text.

  Strings may stand between single quotes, keys without quotes, a comma before
  a closing bracket, True for true and None for null; brackets that are missing
  at the end of the text are taken to be there. A string must be closed.

  Args:
    text: Any text.
    at: Where the value begins; white space is passed over.

  Returns:
    The value, and the place behind it.

  Raises:
    ValueError: there is no value, or one nested more than `DEEPEST` times.
  """
  return _value(text, at, 0)


def skip(text: str, at: int) -> int:
  """The place of the next character that is no white space."""
  return _SPACE.match(text, at).end()


def _value(text, at, depth):
  if depth > DEEPEST:
    raise ValueError(f"nested more than {DEEPEST} times")
  at = skip(text, at)
  first = text[at : at + 1]
  if first == "{":
    return _items(text, at, depth, _member, dict)
  if first == "[":
    return _items(text, at, depth, _value, list)
  if first in _PLAIN:
    return _string(text, at)
  number = _NUMBER.match(text, at)
  if number:
    whole = number[1] is None and number[2] is None
    return (int if whole else float)(number[0]), number.end()
  word = _WORD.match(text, at)
  if word and word[0] in _CONSTANTS:
    return _CONSTANTS[word[0]], word.end()
  raise ValueError(f"no value at character {at}")


def _items(text, at, depth, read_one, make):
  """What stands between brackets, separated by commas."""
  close, found = _CLOSERS[text[at]], []
  at = skip(text, at + 1)
  while at < len(text) and text[at] != close:
    one, at = read_one(text, at, depth + 1)
    found.append(one)
    at = skip(text, at)
    if text[at : at + 1] == ",":
      at = skip(text, at + 1)
    elif at < len(text) and text[at] != close:
      raise ValueError(f"no comma at character {at}")
  return make(found), min(at + 1, len(text))


def _member(text, at, depth, sign=":"):
  if text[at] in _PLAIN:
    key, at = _string(text, at)
  else:
    word = _WORD.match(text, at)
    if not word:
      raise ValueError(f"no key at character {at}")
    key, at = word[0], word.end()
  at = skip(text, at)
  if text[at : at + 1] != sign:
    raise ValueError(f"no {sign!r} at character {at}")
  value, at = _value(text, at + 1, depth)
  return (key, value), at


def read_call(text: str, at: int = 0) -> tuple[str, dict[str, Any], int]:
  """A call such as `search(query="who", limit=3)`.

  Returns:
    Name, arguments, and the place behind it.

  Raises:
    ValueError: there is no such call.
  """
  at = skip(text, at)
  word = _WORD.match(text, at)
  if not word or text[word.end() : word.end() + 1] != "(":
    raise ValueError(f"no call at character {at}")
  keyword = lambda text, at, depth: _member(text, at, depth, "=")
  arguments, end = _items(text, word.end(), 0, keyword, dict)
  return word[0].removesuffix(".call"), arguments, end


def _string(text, at):
  quote, parts = text[at], []
  plain = _PLAIN[quote]
  at += 1
  while True:
    found = plain.match(text, at)
    parts.append(found[0])
    at = found.end()
    if at >= len(text):
      raise ValueError("a string is not closed")
    if text[at] == quote:
      return _paired("".join(parts)), at + 1
    letter = text[at + 1 : at + 2]
    code = _HEX.match(text, at + 2) if letter == "u" else None
    if code:
      parts.append(chr(int(code[0], 16)))
      at = code.end()
    else:
      parts.append(_ESCAPES.get(letter, letter))
      at += 2


def _paired(text):
  """Escapes give the halves of rare letters; two halves are one letter."""
  if any("\ud800" <= letter <= "\udbff" for letter in text):
    raw = text.encode("utf-16", "surrogatepass")
    return raw.decode("utf-16", "surrogatepass")
  return text
