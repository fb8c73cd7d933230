"""Dialects whose arguments stand between tags or marks, without JSON's quotes.

Strings of Qwen3-Coder and GLM have neither quotes nor escapes, so that their
types are those of the tool's schema, or guessed; see `tool_call.value_of`.
"""

import re

from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import json_dialects, loose_json, tool_call
from steppo_jax.prompts.tool_call import Form, ToolCall
from steppo_jax.prompts.tool_kinds import STRING

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_PLAIN_KEY = re.compile(r'[^<>"\s](?:[^<>"\n]*[^<>"\s])?')


def _spelt_key(key) -> str:
  """A key in a tag; in quotes as JSON where it could not be told from it."""
  if _PLAIN_KEY.fullmatch(key):
    return key
  quoted = tool_call.without_marks(tool_call.to_json(key))
  return quoted.replace(">", "\\u003e")


def _read_key(text) -> str:
  text = text.strip()
  return envs_calls.read_json(text)[0] if text.startswith('"') else text


def _kinds_of(kinds, name, key):
  return kinds.get(name, {}).get(key)


def _add(arguments, key, value) -> None:
  if key in arguments:
    raise ValueError(f"the key {key!r} occurs twice")
  arguments[key] = value


_FUNCTION = re.compile(r"\s*<function=([^<>\n]*)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]*)>\n?")
# A value ends where the tag that closes it is followed by another of the form:
# the tag alone may stand in a string.
_PARAMETER_END = re.compile(
  r"\n?</parameter>(?=\s*(?:<parameter=|</function>|\Z))"
)
_PARAMETER_AGAIN = re.compile(r"\n\s*<parameter=[^<>\n]*>")
_UNSAFE_QWEN = re.compile(r"</?(?:parameter|function|tool_call)|\n\Z")


def _read_qwen(text, mark, strict, kinds):
  """<tool_call><function=NAME><parameter=KEY>value</parameter></function>...

  Loosely also without <tool_call>, or with JSON in it as Hermes has.
  """
  bare = mark[0] != _CALL
  if bare and text[max(mark.start() - 12, 0) : mark.start()].endswith(
    (_CALL, f"{_CALL}\n")
  ):
    return [], mark.end()  # What is wrong with it was said of the mark before.
  if bare and strict:
    raise ValueError(f"no {_CALL} before the function")
  at = mark.start() if bare else mark.end()
  if not strict and text.startswith("{", loose_json.skip(text, at)):
    return json_dialects.read_hermes(text, mark, strict, kinds)
  calls = []
  while function := _FUNCTION.match(text, at):
    name, arguments, at = function[1].strip(), {}, function.end()
    while parameter := _PARAMETER.match(text, at):
      end = _PARAMETER_END.search(text, parameter.end())
      key = _read_key(parameter[1])
      if end is None:
        raise loose_json.Unclosed(f"the parameter {key!r} is never closed")
      value = text[parameter.end() : end.start()]
      if _PARAMETER_AGAIN.search(value):
        raise ValueError(f"the parameter {key!r} is not closed")
      kind = _kinds_of(kinds, name, key)
      _add(arguments, key, tool_call.value_of(value, kind, _UNSAFE_QWEN))
      at = end.end()
    at = tool_call.closed(text, at, "</function>")
    calls.append(ToolCall(name, arguments))
    if strict or bare:
      break
  if not calls:
    raise ValueError("no <function=...> in the call")
  if strict:
    return calls, tool_call.closed(text, at, _CALL_END)
  return calls, tool_call.behind(text, at, "<function=", _CALL_END)


def _spell_qwen(name, arguments, kinds) -> str:
  name = tool_call.name_checked(name, "qwen3_coder")
  body = "".join(
    f"<parameter={_spelt_key(key)}>\n"
    + tool_call.text_of(value, _kinds_of(kinds, name, key), _UNSAFE_QWEN)
    + "\n</parameter>\n"
    for key, value in arguments.items()
  )
  return f"{_CALL}\n<function={name}>\n{body}</function>\n{_CALL_END}"


QWEN3_CODER = Form(
  opening=r"<tool_call>|<function=", read=_read_qwen, spell=_spell_qwen
)  # fmt: skip

_NAME = re.compile(r"\s*([^\s<>{]+)\s*")
_ARGUMENT = re.compile(
  r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>", re.DOTALL
)  # fmt: skip
_ARGUMENT_END = re.compile(
  r"</arg_value>(?=\s*(?:<arg_key>|</?tool_call>|\Z))"
)  # fmt: skip
_UNSAFE_GLM = re.compile(r"</?(?:arg_|tool_call)")


def _read_glm(text, mark, strict, kinds):
  """<tool_call>NAME<arg_key>key</arg_key><arg_value>value</arg_value>...

  Where the text ends before </tool_call>, more arguments may have been cut off.
  """
  found = _NAME.match(text, mark.end())
  if found is None:
    if not strict:
      return json_dialects.read_hermes(text, mark, strict, kinds)
    raise ValueError(f"no name of a tool behind {_CALL}")
  name, arguments, at = found[1], {}, found.end()
  while argument := _ARGUMENT.match(text, at):
    key = _read_key(argument[1])
    end = _ARGUMENT_END.search(text, argument.end())
    if end is None:
      raise loose_json.Unclosed(f"the value of {key!r} is never closed")
    value = text[argument.end() : end.start()]
    if "<arg_key>" in value:
      raise ValueError(f"the value of {key!r} is not closed")
    kind = _kinds_of(kinds, name, key)
    _add(arguments, key, tool_call.value_of(value, kind, _UNSAFE_GLM))
    at = end.end()
  if strict or not text.startswith(_CALL, loose_json.skip(text, at)):
    at = tool_call.closed(text, at, _CALL_END)
  return [ToolCall(name, arguments)], at


def _spell_glm(name, arguments, kinds) -> str:
  name = tool_call.name_checked(name, "glm")
  body = "".join(
    f"<arg_key>{_spelt_key(key)}</arg_key>\n<arg_value>"
    + tool_call.text_of(value, _kinds_of(kinds, name, key), _UNSAFE_GLM)
    + "</arg_value>\n"
    for key, value in arguments.items()
  )
  return f"{_CALL}{name}\n{body}{_CALL_END}"


GLM = Form(opening=_CALL, read=_read_glm, spell=_spell_glm)

_GEMMA_HEAD = re.compile(r"\s*call:([^\s{<]+)\s*(?=\{)")
_NEVER = re.compile(r"(?!)")
_GEMMA_KEY = re.compile(r"[A-Za-z_][\w.-]*")


def _marked(opening: str, closing: str, quote: str, dialect: str) -> Form:
  """Calls as Gemma's later models write them, with marks for quotes."""

  def read(text, mark, strict, kinds):
    head = _GEMMA_HEAD.match(text, mark.end())
    if head is None:
      raise ValueError(f"no call:NAME{{...}} behind {opening}")
    arguments, at = loose_json.read(text, head.end(), ends=0)
    # FunctionGemma's template writes every argument as a string.
    for key, value in arguments.items():
      kind = _kinds_of(kinds, head[1], key)
      if isinstance(value, str) and kind and not kind & STRING:
        arguments[key] = tool_call.value_of(value, kind, _NEVER)
    if not strict and not text.startswith(closing, loose_json.skip(text, at)):
      return [ToolCall(head[1], arguments)], at
    at = tool_call.closed(text, at, closing)
    return [ToolCall(head[1], arguments)], at

  def value(one) -> str:
    if isinstance(one, dict):
      return f"{{{','.join(f'{key(k)}:{value(v)}' for k, v in one.items())}}}"
    if isinstance(one, list | tuple):
      return f"[{','.join(map(value, one))}]"
    if isinstance(one, str) and quote not in one:
      return f"{quote}{one}{quote}"
    return tool_call.without_marks(tool_call.to_json(one))

  def key(one) -> str:
    return one if _GEMMA_KEY.fullmatch(one) else value(one)

  def spell(name, arguments, kinds) -> str:
    name = tool_call.name_checked(name, dialect)
    return f"{opening}call:{name}{value(dict(arguments))}{closing}"

  return Form(opening=re.escape(opening), read=read, spell=spell)


FUNCTIONGEMMA = _marked(
  "<start_function_call>", "<end_function_call>", "<escape>", "functiongemma"
)
GEMMA4 = _marked("<|tool_call>", "<tool_call|>", '<|"|>', "gemma4")

_UNSAFE_ACTION = re.compile(r"</?action>|\A\s|\s\Z")


def _read_action(text, mark, strict, kinds):
  """<action>words</action>; closed by the next one where it is not."""
  end = re.compile(r"</action>|(?=<action>)").search(text, mark.end())
  body = text[mark.end() : end.start() if end else len(text)].strip()
  if strict and (end is None or not end[0]):
    raise ValueError("<action> is never closed")
  if not body:
    raise ValueError("<action> is empty")
  action = tool_call.value_of(body, STRING, _UNSAFE_ACTION)
  return [ToolCall("action", {"action": action})], end.end() if end else len(
    text
  )


def _spell_action(name, arguments, kinds) -> str:
  (value,) = arguments.values()
  if isinstance(value, str):
    value = tool_call.text_of(value, STRING, _UNSAFE_ACTION)
  return f"<action>{value}</action>"


ACTION = Form(
  opening="<action>", read=_read_action, spell=_spell_action, untagged=False
)  # fmt: skip
