"""JSON and Python values as models write them: spare commas, other quotes."""

import re
import unicodedata
from typing import Any, NamedTuple

from steppo_jax.envs import calls

# Deeper than any call, and shallow enough for Python's stack.
DEEPEST = 64
_SPACE = re.compile(r"\s*")
# The most digits that Python makes an integer of.
_NUMBER = re.compile(r"-?\d{1,4300}(\.\d*)?([eE][-+]?\d{1,3})?(?![\w.])")
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_CUT = re.compile(r"[\w.+-]*\Z")
_PLAIN = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
# What FunctionGemma and Gemma 4 write in place of quotes.
_QUOTE_MARK = re.compile(r'<escape>|<\|"\|>')
# What a letter behind a backslash stands for.
_JSON_LETTERS = {
  "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "",
  "\\": "\\", '"': '"', "'": "'", "/": "/", "": "",
}  # fmt: skip
_PYTHON_LETTERS = {**_JSON_LETTERS, "a": "\a", "v": "\v", "\r": ""}
del _PYTHON_LETTERS["/"]
_HEX = r"u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})"
_JSON_CODE = re.compile(_HEX)
_PYTHON_CODE = re.compile(
  rf"{_HEX}|(?P<octal>[0-7]{{1,3}})|N\{{(?P<name>[^{{}}\n]{{1,99}})\}}|\r\n"
)
_LOW_HALF = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_CONSTANTS = {
  "true": True, "True": True, "false": False, "False": False, "null": None,
  "None": None,
}  # fmt: skip
_CLOSERS = {"{": "}", "[": "]", "(": ")"}


class _How(NamedTuple):
  """How values are read.

  Attributes:
    ends: How many of the outermost brackets may be missing.
    python: Whether escapes in strings are Python's, else JSON's.
  """

  ends: int
  python: bool = False


class Unclosed(ValueError):
  """The text ends inside of a value, so that all of it belongs to the value."""


def read(text: str, at: int = 0, *, ends: int = 1) -> tuple[Any, int]:
  """The value that begins at a place of a text.

  Strings may stand between single quotes, three quotes or the marks of Gemma,
  keys without quotes, a comma before a closing bracket, True for true and None
  for null. A backslash that escapes nothing is a backslash.

  Args:
    text: Any text.
    at: Where the value begins; white space is passed over.
    ends: How many of the outermost brackets may be missing at the end of the
      text. The inner ones must be there, and a string must be closed: what was
      cut off could have held more.

  Returns:
    The value, and the place behind it.

  Raises:
    Unclosed: the text ends before the value does.
    ValueError: there is no value, one nested more than `DEEPEST` times, a key
      that occurs twice, or a number that is too large.
  """
  return _value(text, at, 0, _How(ends))


def skip(text: str, at: int) -> int:
  """The place of the next character that is no white space."""
  return _SPACE.match(text, at).end()


def _value(text, at, depth, how):
  if depth > DEEPEST:
    raise ValueError(f"nested more than {DEEPEST} times")
  at = skip(text, at)
  first = text[at : at + 1]
  if first == "{":
    pairs, at = _items(text, at, depth, _member, how)
    return calls.unique(pairs), at
  if first == "[":
    return _items(text, at, depth, _value, how)
  if first in _PLAIN:
    return _string(text, at, how.python)
  if first == "<" and (mark := _QUOTE_MARK.match(text, at)):
    end = text.find(mark[0], mark.end())
    if end < 0:
      raise Unclosed("a string is not closed")
    return text[mark.end() : end], end + len(mark[0])
  number = _NUMBER.match(text, at)
  if number:
    whole = number[1] is None and number[2] is None
    return (int if whole else calls.finite)(number[0]), number.end()
  word = _WORD.match(text, at)
  if word and word[0] in _CONSTANTS:
    return _CONSTANTS[word[0]], word.end()
  if _CUT.match(text, at):
    raise Unclosed("the value is cut off")
  raise ValueError(f"no value at character {at}")


def _items(text, at, depth, read_one, how):
  """What stands between brackets, separated by commas."""
  close, found = _CLOSERS[text[at]], []
  at = skip(text, at + 1)
  while at < len(text) and text[at] != close:
    one, at = read_one(text, at, depth + 1, how)
    found.append(one)
    at = skip(text, at)
    if text[at : at + 1] == ",":
      at = skip(text, at + 1)
    elif at < len(text) and text[at] != close:
      raise ValueError(f"no comma at character {at}")
  if at >= len(text) and depth >= how.ends:
    raise Unclosed(f"cut off before a {close!r}")
  return found, min(at + 1, len(text))


def _member(text, at, depth, how, sign=":"):
  if text[at] in _PLAIN or text[at] == "<":
    key, at = _value(text, at, depth, how)
  else:
    word = _WORD.match(text, at)
    if not word:
      raise ValueError(f"no key at character {at}")
    key, at = word[0], word.end()
  at = skip(text, at)
  if at >= len(text):
    raise Unclosed(f"cut off behind {key!r}")
  if text[at] != sign:
    raise ValueError(f"no {sign!r} at character {at}")
  value, at = _value(text, at + 1, depth, how)
  return (key, value), at


def _keyword(text, at, depth, how):
  """One argument of a Python call; a list of pairs for **{...}."""
  if text.startswith("**", at):
    more, at = _value(text, at + 2, depth, how)
    if not isinstance(more, dict):
      raise ValueError(f"no keywords at character {at}")
    return list(more.items()), at
  if text[at:] == "*":
    raise Unclosed("cut off behind a '*'")
  pair, at = _member(text, at, depth, how, "=")
  return [pair], at


def read_call(
  text: str, at: int = 0, *, ends: int = 0
) -> tuple[str, dict[str, Any], int]:
  """A call such as `search(query="who", limit=3)`, with Python's escapes.

  Args:
    text: Any text.
    at: Where the call begins; white space is passed over.
    ends: See `read`.

  Returns:
    Name, arguments, and the place behind it.

  Raises:
    Unclosed: the text ends before the call does.
    ValueError: there is no such call, or one with arguments without a name.
  """
  at = skip(text, at)
  word = _WORD.match(text, at)
  if not word or text[word.end() : word.end() + 1] != "(":
    if _CUT.match(text, at):
      raise Unclosed("the call is cut off")
    raise ValueError(f"no call at character {at}")
  found, end = _items(text, word.end(), 0, _keyword, _How(ends, True))
  return word[0], calls.unique([pair for pairs in found for pair in pairs]), end


def _string(text, at, python):
  quote, parts = text[at], []
  plain = _PLAIN[quote]
  if text.startswith(quote * 3, at):
    quote *= 3
  at += len(quote)
  while True:
    found = plain.match(text, at)
    parts.append(found[0])
    at = found.end()
    if at >= len(text):
      raise Unclosed("a string is not closed")
    if text.startswith(quote, at):
      return "".join(parts), at + len(quote)
    if text[at] != "\\":
      parts.append(text[at])
      at += 1
      continue
    letters, at = _escape(text, at + 1, python)
    parts.append(letters)


def _escape(text, at, python):
  """What stands behind a backslash; all of it where it escapes nothing."""
  code = (_PYTHON_CODE if python else _JSON_CODE).match(text, at)
  letter = _coded(code) if code else None
  if letter is None:
    letter = text[at : at + 1]
    letters = _PYTHON_LETTERS if python else _JSON_LETTERS
    return letters.get(letter, f"\\{letter}"), at + 1
  low = _LOW_HALF.match(text, code.end())
  if low and "\ud800" <= letter <= "\udbff":
    # The halves of a rare letter are one letter in JSON, and no text elsewhere.
    pair = (letter + chr(int(low[1], 16))).encode("utf-16", "surrogatepass")
    return pair.decode("utf-16"), low.end()
  return letter, code.end()


def _coded(code: re.Match) -> str | None:
  """The letter of a number or a name; None where there is no such letter."""
  groups = code.groupdict()
  if groups.get("name") is not None:
    try:
      letter = unicodedata.lookup(groups["name"])
    except (KeyError, ValueError):
      return None
    return letter if len(letter) == 1 else None
  if code.lastindex is None:
    return ""
  base = 8 if groups.get("octal") else 16
  number = int(code[code.lastindex], base)
  return chr(number) if number < 0x110000 else None
