"""Chat templates, rendered so that no content can write what is around it.

A template is rendered with a unique word in the place of every content. What
it puts around these words is its own; contents are put in afterwards, as plain
text. Whether a template strips a content, or writes it as a JSON string, shows
on marks of white space that surround each word.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steppo_jax.models.formats import chat_templates

Message = Mapping[str, Any]

# A template that strips newlines only leaves the part that is not of them. They
# are more than a template itself would write beside a content.
_NEWLINES = "\n" * 7
_LEFT, _RIGHT = f"{_NEWLINES}\t \n", f"\n \t{_NEWLINES}"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# What spells no control token of a released model: those have brackets, bars or
# signs that are neither letters nor these.
_PLAIN_WORDS = re.compile(r"""[\w\s.,;:?!$@#%&=+*/~'"()-]{1,256}""")
_TAGS = re.compile("(<think>|</think>)")
# What `hide` and templates know of a message; all else is what it says, too.
_SHOWN = {"role", "content", "tool_calls", *chat_templates.THOUGHTS}


class Slot(NamedTuple):
  """Where a content goes.

  Attributes:
    message: Index of the message.
    text: The content as the template writes it there: whole, stripped or as
      the inside of a JSON string.
    whole: Whether it is all of the message's content, not one of its thoughts.
    beside: Whether it is something else that the message has, such as a name.
  """

  message: int
  text: str
  whole: bool
  beside: bool = False


class Rendered(NamedTuple):
  """What a template makes of messages.

  Attributes:
    pieces: In order: texts of the template, and slots of contents.
    dropped: Indices of messages of whose content a part is not shown.
    differs: Where the pieces are not what the template writes by itself, and
      how; "" where they are. It may change a content in a way that is not
      followed here, or a content may try to change the template.
  """

  pieces: tuple[str | Slot, ...]
  dropped: tuple[int, ...]
  differs: str = ""

  @property
  def faithful(self) -> bool:
    """Whether the pieces are what the template writes by itself."""
    return not self.differs

  @property
  def text(self) -> str:
    """All of it as one text."""
    return "".join(
      piece.text if isinstance(piece, Slot) else piece for piece in self.pieces
    )


class ChatTemplate(chat_templates.Template):
  """A template that is also rendered with its contents kept apart."""

  def render(self, messages: Sequence[Message], **options: Any) -> Rendered:
    """The template's texts and, in their places, the contents.

    The content of an assistant may have thoughts in <think>; the tags are then
    the template's to see, so that it can leave the thoughts out.

    Args:
      messages: With `role` and `content`, a text, None, or a list of parts
        such as `{"type": "text", "text": ...}`; an assistant's may have
        `tool_calls` and `reasoning_content`.
      options: See `write`.

    Raises:
      ValueError: see `write`; also a message without a role, or with a content
        that is neither text nor a list of parts, thoughts that are no text, or
        calls that are no list.
    """
    _check(messages)
    try:
      alone = self.write(messages, **options)
      differs = ""
    except ValueError as error:
      # A content made it fail, which it must not decide.
      alone, differs = None, str(error)
    found = []
    for margins in ((_LEFT, _RIGHT), ("", "")):
      words = _Words(self._source + repr(options), margins)
      hidden = [words.hide(i, message) for i, message in enumerate(messages)]
      written = self.write(hidden, **options)
      rendered = Rendered(_put_in(written, words), words.missing(written))
      if alone is not None:
        differs = _difference(rendered.text, alone)
      found.append(rendered._replace(differs=differs))
      # A template may look at the white space: once more, without.
      if not differs or alone is None:
        return found[-1]
    return found[0]


def _difference(ours: str, alone: str) -> str:
  """Where two texts differ first, in words; "" for equal ones."""
  if ours == alone:
    return ""
  pairs = enumerate(itertools.zip_longest(ours, alone))
  at = next(i for i, (a, b) in pairs if a != b)
  near = slice(max(0, at - 20), at + 40)
  return (
    f"the template by itself writes {alone[near]!r} at character {at}, and "
    f"with its contents put in as plain text {ours[near]!r}"
  )


class _Words:
  """Unique words, and what each stands for.

  Args:
    taken: Text in which the words must not occur.
    margins: What stands around each word.
  """

  def __init__(self, taken: str, margins: tuple[str, str]):
    self._margins = margins
    salt = 0
    while True:
      digest = hashlib.sha256(f"{salt}{taken}".encode("utf-8", "replace"))
      self._stem = f"CONTENT{digest.hexdigest()[:12]}N"
      if self._stem not in taken:
        break
      salt += 1
    # By word, or by words with tags between: message and what it stands for.
    self.parts: dict[str, tuple[int, str]] = {}
    self.wholes: dict[str, tuple[int, str]] = {}
    self.optional: set[str] = set()

  def _word(self, message: int, content: str, shown: bool = True) -> str:
    word = f"{self._stem}{len(self.parts)}E"
    self.parts[word] = (message, content)
    if not shown:
      self.optional.add(word)
    return word

  def _hidden(self, message: int, content: str, shown: bool = True) -> str:
    return self._word(message, content, shown).join(self._margins)

  def hide(self, index: int, message: Message) -> dict[str, Any]:
    """The message with words for its contents."""
    hidden = {
      name: value if name in _SHOWN else self._values(index, value, shown=False)
      for name, value in message.items()
    }
    content = message.get("content")
    thinks = message["role"] == "assistant"
    if isinstance(content, list):
      hidden["content"] = [self._part(index, part) for part in content]
    elif content or (content == "" and message["role"] in ("user", "tool")):
      hidden["content"] = self._content(index, content, thinks)
    for name in chat_templates.THOUGHTS:
      if message.get(name):
        hidden[name] = self._hidden(index, message[name])
    if message.get("tool_calls"):
      hidden["tool_calls"] = self._values(index, message["tool_calls"])
    return hidden

  def _content(self, index, content, thinks):
    parts = _TAGS.split(content) if thinks else [content]
    if len(parts) == 1:
      word = self._word(index, content)
      self.wholes[word] = (index, content)
      return word.join(self._margins)
    found = [
      part if at % 2 else self._hidden(index, part)
      for at, part in enumerate(parts)
      if part
    ]
    text = "".join(found)
    left, right = self._margins
    core = text.removeprefix(left).removesuffix(right)
    self.wholes[core] = (index, content)
    return text

  def _part(self, index, part):
    """A part of a content; its kind is the program's."""
    hidden = self._values(index, part, shown=False)
    if isinstance(part.get("text"), str):
      hidden["text"] = self._hidden(index, part["text"])
    return hidden

  def _values(self, index, value, named=True, shown=True):
    """Strings inside of tool calls, or of what else a message has.

    What can hold no mark stays where a template may compare or sort it: kinds,
    keys, names and numbers of calls, and all plain words of what is not
    `shown`, which a template need not write.
    """
    if isinstance(value, str):
      if not shown and _is_plain(value):
        return value
      return self._hidden(index, value, shown)
    if isinstance(value, Mapping):
      return {
        self._key(index, key, shown): x
        if (key == "type" or (named and key in ("id", "name")))
        and _is_plain_name(x)
        else self._values(index, x, named and key == "function", shown)
        for key, x in value.items()
      }
    if isinstance(value, list | tuple):
      return [self._values(index, x, named, shown) for x in value]
    return value

  def _key(self, index, key, shown):
    if not isinstance(key, str) or _is_plain(key):
      return key
    return self._hidden(index, key, shown)

  def missing(self, written: str) -> tuple[int, ...]:
    """Messages of which a word was not written."""
    found = {
      i
      for word, (i, _) in self.parts.items()
      if word not in written and word not in self.optional
    }
    return tuple(sorted(found))


def _is_plain_name(value: Any) -> bool:
  return isinstance(value, str) and bool(_PLAIN_NAME.fullmatch(value))


def _is_plain(value: str) -> bool:
  """Whether a text that names something can stand as it is."""
  return bool(_PLAIN_WORDS.fullmatch(value))


def _put_in(written: str, words: _Words) -> tuple[str | Slot, ...]:
  """Splits at the words; marks beside them tell how contents are written."""
  if not words.parts:
    return (written,) if written else ()
  every = {**words.parts, **words.wholes}
  # The longest first: a whole with its thoughts before the first of them.
  pattern = "|".join(map(re.escape, sorted(every, key=len, reverse=True)))
  pieces, at = [], 0
  for found in re.finditer(pattern, written):
    if found.start() < at:
      continue
    message, content = every[found[0]]
    left, right = written[at : found.start()], written[found.end() :]
    left, first = _left(left)
    skip, last = _right(right)
    text = content
    for strip in (first, last):
      text = strip(text)
    if left:
      pieces.append(left)
    pieces.append(
      Slot(message, text, found[0] in words.wholes, found[0] in words.optional)
    )
    at = found.end() + skip
  if written[at:]:
    pieces.append(written[at:])
  return tuple(pieces)


_SAME = lambda text: text


def _escaped(text: str) -> str:
  return json.dumps(text, ensure_ascii=False)[1:-1]


def _left(text):
  """The text without the mark at its end, and what was done to the content."""
  json_mark = _escaped(_LEFT)
  for mark, change in (
    (_LEFT, _SAME),
    (json_mark, _escaped),
    (_LEFT.lstrip("\n"), lambda text: text.lstrip("\n")),
  ):
    if text.endswith(mark):
      return text[: len(text) - len(mark)], change
  return text, str.lstrip


def _right(text):
  """Length of the mark at the beginning, and what was done to the content."""
  json_mark = _escaped(_RIGHT)
  for mark, change in (
    (_RIGHT, _SAME),
    # Escaped once, on the left.
    (json_mark, _SAME),
    (_RIGHT.rstrip("\n"), lambda text: text.rstrip("\n")),
  ):
    if text.startswith(mark):
      return len(mark), change
  return 0, str.rstrip


def _check(messages) -> None:
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping):
      raise ValueError(f"message {i} is a {type(message).__name__}, no mapping")
    if not _is_plain_name(message.get("role")):
      raise ValueError(f"message {i} has no role that is a short name")
    content = message.get("content")
    parts = isinstance(content, list) and _are_maps(content)
    if not (content is None or isinstance(content, str) or parts):
      raise ValueError(
        f"the content of message {i} is a {type(content).__name__}: give text"
      )
    for name in chat_templates.THOUGHTS:
      if not isinstance(message.get(name), str | None):
        raise ValueError(f"{name} of message {i} is no text")
    calls = message.get("tool_calls")
    if not (calls is None or _are_maps(calls)):
      raise ValueError(f"tool_calls of message {i} is no list of calls")


def _are_maps(value: Any) -> bool:
  return isinstance(value, list | tuple) and all(
    isinstance(one, Mapping) for one in value
  )
