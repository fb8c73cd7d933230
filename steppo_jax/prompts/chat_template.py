"""Chat templates, rendered so that no content can write what is around it.

A template is rendered with a unique word in the place of every content. What
it puts around these words is its own; contents are put in afterwards, as plain
text. Whether a template strips a content, or writes it as a JSON string, shows
on marks of white space that surround each word.
"""

import datetime
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = Mapping[str, Any]

# A template that strips newlines only leaves the part that is not of them. They
# are more than a template itself would write beside a content.
_NEWLINES = "\n" * 7
_LEFT, _RIGHT = f"{_NEWLINES}\t \n", f"\n \t{_NEWLINES}"
_TAGS = re.compile("(<think>|</think>)")


class Slot(NamedTuple):
  """Where a content goes.

  Attributes:
    message: Index of the message.
    text: The content as the template writes it there: whole, stripped or as
      the inside of a JSON string.
    whole: Whether it is all of the message's content, not one of its thoughts.
  """

  message: int
  text: str
  whole: bool


class Rendered(NamedTuple):
  """What a template makes of messages.

  Attributes:
    pieces: In order: texts of the template, and slots of contents.
    dropped: Indices of messages of whose content a part is not shown.
    faithful: Whether the pieces are what the template writes by itself. Else
      it changes a content in a way that is not followed here, or a content
      tries to change the template.
  """

  pieces: tuple[str | Slot, ...]
  dropped: tuple[int, ...]
  faithful: bool

  @property
  def text(self) -> str:
    """All of it as one text."""
    return "".join(
      piece.text if isinstance(piece, Slot) else piece for piece in self.pieces
    )


class ChatTemplate:
  """A Jinja template in a sandbox.

  Templates see what those of Hugging Face see: messages, tools,
  add_generation_prompt, the special tokens, and the functions raise_exception,
  strftime_now and tojson.
  """

  def __init__(self, source: str, variables: Mapping[str, Any], *, where: str):
    """Compiles a template.

    Args:
      source: Jinja source.
      variables: What it can read beside messages, such as bos_token.
      where: The file, for errors.

    Raises:
      ValueError: the source is no template.
      RuntimeError: the package jinja2 is missing.
    """
    try:
      import jinja2
      from jinja2 import ext, sandbox
    except ImportError as error:
      raise RuntimeError(
        "chat templates are rendered by the package jinja2: "
        "pip install 'steppo_jax[chat]'"
      ) from error
    environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = functools.partial(_refuse, jinja2)
    environment.globals["strftime_now"] = _now
    self._where, self._source = where, source
    self._variables = dict(variables)
    self._error = jinja2.TemplateError
    try:
      # A template whose nodes nest too deep overflows the compiler's stack.
      self._template = environment.from_string(source)
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
      line = getattr(error, "lineno", None)
      raise ValueError(
        f"{where}: the chat template is broken"
        f"{f' in line {line}' if line else ''} ({error})"
      ) from error

  def write(self, messages: Sequence[Message], **options: Any) -> str:
    """What the template writes by itself, contents unguarded.

    Args:
      messages: With `role` and `content`.
      options: Further variables: tools, add_generation_prompt and others.

    Raises:
      ValueError: the template refuses the messages or fails on them.
    """
    try:
      return self._template.render(
        messages=messages, **(self._variables | options)
      )
    except (
      self._error, TypeError, ValueError, AttributeError, LookupError,
      ArithmeticError, RecursionError,
    ) as error:  # fmt: skip
      raise ValueError(
        f"{self._where}: the chat template does not take these messages "
        f"({', '.join(str(m.get('role')) for m in messages)}): {error}"
      ) from error

  def render(self, messages: Sequence[Message], **options: Any) -> Rendered:
    """The template's texts and, in their places, the contents.

    The content of an assistant may have thoughts in <think>; the tags are then
    the template's to see, so that it can leave the thoughts out.

    Args:
      messages: With `role` and `content`, a text or None; an assistant's may
        have `tool_calls`.
      options: See `write`.

    Raises:
      ValueError: see `write`; also a message without a role, or with a content
        that is not a text.
    """
    _check(messages)
    words = _Words(self._source + repr(options))
    hidden = [words.hide(i, message) for i, message in enumerate(messages)]
    written = self.write(hidden, **options)
    pieces = _put_in(written, words)
    rendered = Rendered(tuple(pieces), words.missing(written), True)
    try:
      alone = self.write(messages, **options)
    except ValueError:
      # A content made it fail, which it must not decide.
      return rendered._replace(faithful=False)
    return rendered._replace(faithful=rendered.text == alone)


class _Words:
  """Unique words, and what each stands for."""

  def __init__(self, taken: str):
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

  def _word(self, message: int, content: str) -> str:
    word = f"{self._stem}{len(self.parts)}E"
    self.parts[word] = (message, content)
    return word

  def hide(self, index: int, message: Message) -> dict[str, Any]:
    """The message with words for its contents."""
    hidden = dict(message)
    content = message.get("content")
    thinks = message["role"] == "assistant"
    if content or (content == "" and not thinks):
      hidden["content"] = self._content(index, content, thinks)
    if message.get("reasoning_content"):
      word = self._word(index, message["reasoning_content"])
      hidden["reasoning_content"] = f"{_LEFT}{word}{_RIGHT}"
    if message.get("tool_calls"):
      hidden["tool_calls"] = self._values(index, message["tool_calls"])
    return hidden

  def _content(self, index, content, thinks):
    parts = _TAGS.split(content) if thinks else [content]
    if len(parts) == 1:
      word = self._word(index, content)
      self.wholes[word] = (index, content)
      return f"{_LEFT}{word}{_RIGHT}"
    found = [
      part if at % 2 else f"{_LEFT}{self._word(index, part)}{_RIGHT}"
      for at, part in enumerate(parts)
      if part
    ]
    text = "".join(found)
    core = text.removeprefix(_LEFT).removesuffix(_RIGHT)
    self.wholes[core] = (index, content)
    return text

  def _values(self, index, value):
    """Strings inside of tool calls; keys are the program's."""
    if isinstance(value, str):
      return f"{_LEFT}{self._word(index, value)}{_RIGHT}"
    if isinstance(value, Mapping):
      return {
        key: x if key == "type" else self._values(index, x)
        for key, x in value.items()
      }
    if isinstance(value, list | tuple):
      return [self._values(index, x) for x in value]
    return value

  def missing(self, written: str) -> tuple[int, ...]:
    """Messages of which a word was not written."""
    found = {i for word, (i, _) in self.parts.items() if word not in written}
    return tuple(sorted(found))


def _put_in(written: str, words: _Words) -> list[str | Slot]:
  """Splits at the words; marks beside them tell how contents are written."""
  if not words.parts:
    return [written] if written else []
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
    pieces.append(Slot(message, text, found[0] in words.wholes))
    at = found.end() + skip
  if written[at:]:
    pieces.append(written[at:])
  return pieces


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
    if not isinstance(message.get("role"), str):
      raise ValueError(f"message {i} has no role")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
      raise ValueError(
        f"the content of message {i} is a {type(content).__name__}: give text"
      )


def _refuse(jinja2, message):
  raise jinja2.TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _to_json(value, ensure_ascii=False, indent=None, separators=None,
             sort_keys=False):  # fmt: skip
  # Not Jinja's own, which escapes for HTML.
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
    sort_keys=sort_keys,
  )  # fmt: skip
