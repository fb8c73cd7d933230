"""What the chat template of a released model writes, as transformers has it.

Templates are written in Jinja, and for what transformers adds to it
(`apply_chat_template`, transformers 5.24): the same is added here, so that a
template writes the same. This module imports no JAX.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = Mapping[str, Any]

# What thoughts beside a content are called, the standard name first.
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
# Of a conversation by which it is found out what a template does.
_WORDS = ("QWORDQ", "AWORDA", "MWORDM")


class EndIds(NamedTuple):
  """How a template ends the turn of an assistant.

  Attributes:
    stop: The control token that ends the last turn, which is what a model is to
      sample; None where the template writes none, as where the mark of the next
      role ends a turn.
    closing: All control tokens that it ends a turn with: that, and the one
      before another turn, where that is a different one.
  """

  stop: int | None
  closing: tuple[int, ...]


class Template:
  """A Jinja template in a sandbox.

  Templates see what transformers shows them: messages, tools and documents
  (None where there are none), add_generation_prompt, the special tokens, the
  functions raise_exception, strftime_now, dict and namespace, the filter
  tojson, break and continue, and the tag generation, whose inside is written
  as it stands. Keys of a message that are None are absent, and thoughts beside
  a content have the three names that templates read them under.
  """

  def __init__(
    self,
    source: str | Mapping[str, str],
    variables: Mapping[str, Any],
    *,
    where: str,
  ):
    """Compiles a template.

    Args:
      source: Jinja source; or several by their names, of which "tool_use" is
        for messages with tools, and "default" for all others.
      variables: What it can read beside messages, such as bos_token.
      where: The file, for errors.

    Raises:
      ValueError: a source is no template, or several have no default.
      RuntimeError: the package jinja2 is missing.
    """
    sources = {"default": source} if isinstance(source, str) else dict(source)
    if "default" not in sources:
      raise ValueError(
        f"{where} has the chat templates {', '.join(sorted(sources))} and no "
        "default: give one of them"
      )
    self._where, self._source = where, source_of(sources)
    self._variables = dict(variables)
    self._error = _jinja().TemplateError
    self._templates = {
      name: _compiled(text, where) for name, text in sources.items()
    }
    self._parts = False
    self._parts = self._wants_parts()

  def write(self, messages: Sequence[Message], **options: Any) -> str:
    """What the template writes by itself, contents unguarded.

    Args:
      messages: With `role` and `content`.
      options: Further variables: tools, add_generation_prompt and others.

    Raises:
      ValueError: the template refuses the messages or fails on them.
    """
    known = {"tools": None, "documents": None, "add_generation_prompt": False}
    variables = known | self._variables | options
    use = "default" if variables["tools"] is None else "tool_use"
    template = self._templates.get(use, self._templates["default"])
    try:
      return template.render(
        messages=[_as_templates_read(m, self._parts) for m in messages],
        **variables,
      )
    except (
      self._error, TypeError, ValueError, AttributeError, LookupError,
      ArithmeticError, RecursionError,
    ) as error:  # fmt: skip
      raise ValueError(
        f"{self._where}: the chat template does not take these messages "
        f"({', '.join(str(m.get('role')) for m in messages)}): {error}"
      ) from error

  def _wants_parts(self) -> bool:
    """Whether the template shows contents only where they are lists of parts.

    Those of models that see pictures may ask for it.
    """
    word = _WORDS[0]
    parts = [{"type": "text", "text": word}]
    for content, shown in ((word, False), (parts, True)):
      try:
        written = self.write([{"role": "user", "content": content}])
      except ValueError:
        written = ""
      if (word in written) is not shown:
        return False
    return True

  def end_ids(self, tokenizer: Any, known: Sequence[int] = ()) -> EndIds:
    """The control tokens that the template writes behind an assistant's turn.

    Found by letting it write a conversation of unique words. A control token
    that opens the next turn is none of them: the words of two users bring one
    more of it than those of one, and it stands before the first user too.

    Args:
      tokenizer: Has `controls`; see `prompts.chat.ChatTokenizer`.
      known: Ids that the model's files say end a text or a turn.
    """
    said = [
      {"role": role, "content": word}
      for role, word in zip(("user", "assistant", "user"), _WORDS, strict=True)
    ]
    answer = _WORDS[1]
    for options in ({}, {"tools": []}):  # Those for tools may need a list.
      try:
        first, two, all_of_it = (
          self.write(said[:n], **options) for n in (1, 2, 3)
        )
      except ValueError:
        continue
      break
    else:
      return EndIds(None, ())
    last = _leading(two.partition(answer)[2], tokenizer.controls)
    within = _leading(all_of_it.partition(answer)[2], tokenizer.controls)
    before_another = within.run[0] if len(within.run) > 1 else None
    text = {i: text for text, i in tokenizer.controls.items()}
    if before_another is not None:
      mark = text[before_another]
      added = all_of_it.count(mark) - first.count(mark)
      if added == 1 and mark in first:
        before_another = None
    stop = next((i for i in last.ids if i in known), None)
    if last.run and (last.alone or set(last.run) & set(known)):
      stop = last.run[0]
    elif not last.ids:
      stop = before_another
    found = [i for i in (stop, before_another) if i is not None]
    return EndIds(stop, tuple(dict.fromkeys(found)))


class _Leading(NamedTuple):
  """The control tokens of a text.

  Attributes:
    ids: All of them.
    run: Those before anything but white space.
    alone: Whether there is nothing but them and white space.
  """

  ids: list[int]
  run: list[int]
  alone: bool


def _leading(text: str, controls: Mapping[str, int]) -> _Leading:
  if not controls:
    return _Leading([], [], not text.strip())
  spelt = sorted(controls, key=len, reverse=True)
  parts = re.split(f"({'|'.join(map(re.escape, spelt))})", text)
  ids = [controls[mark] for mark in parts[1::2]]
  blank = [not between.strip() for between in parts[::2]]
  return _Leading(ids, ids[: [*blank, False].index(False)], all(blank))


def source_of(template: str | Mapping[str, str] | None) -> str:
  """All the source of a template, or of several by their names."""
  several = isinstance(template, Mapping)
  return "".join(template.values()) if several else template or ""


def _as_templates_read(message: Message, parts: bool) -> dict[str, Any]:
  """A message without keys that are None, its thoughts under every name.

  Args:
    message: As it is given.
    parts: Whether a content that is a text becomes a list of one part.

  Source: `apply_chat_template` of transformers 5.24, but for `parts`.
  """
  given = {key: value for key, value in message.items() if value is not None}
  if parts and isinstance(given.get("content"), str):
    given["content"] = [{"type": "text", "text": given["content"]}]
  thoughts = [given[name] for name in THOUGHTS if name in given]
  if not thoughts:
    return given
  return {"thinking": thoughts[0], **given, "reasoning_content": thoughts[0]}


def _compiled(source: str, where: str) -> Any:
  """A template of Jinja; ValueError where the source is none."""
  jinja2 = _jinja()
  try:
    # A template whose nodes nest too deep overflows the compiler's stack.
    return _environment().from_string(source)
  except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
    line = getattr(error, "lineno", None)
    raise ValueError(
      f"{where}: the chat template is broken"
      f"{f' in line {line}' if line else ''} ({error})"
    ) from error


def _jinja():
  try:
    import jinja2
  except ImportError as error:
    raise RuntimeError(
      "chat templates are rendered by the package jinja2: "
      "pip install 'steppo_jax[chat]'"
    ) from error
  return jinja2


@functools.cache
def _environment():
  jinja2 = _jinja()
  from jinja2 import ext, sandbox

  class Generation(ext.Extension):
    """{% generation %}, which marks what an assistant wrote, is passed over."""

    tags = frozenset({"generation"})

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      # A scope of its own: what is set inside is not seen behind it.
      return jinja2.nodes.Scope(body, lineno=line)

  def refuse(message):
    raise jinja2.TemplateError(message)

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, ext.loopcontrols],
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = refuse
  environment.globals["strftime_now"] = _now
  return environment


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _to_json(value, ensure_ascii=False, indent=None, separators=None,
             sort_keys=False):  # fmt: skip
  # Not Jinja's own, which escapes for HTML.
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
    sort_keys=sort_keys,
  )  # fmt: skip
