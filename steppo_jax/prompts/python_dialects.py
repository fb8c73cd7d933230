"""Dialects in which calls may be written in Python: Llama's and Gemma 3's."""

import re

from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import loose_json, tool_call
from steppo_jax.prompts.tool_call import Form, ToolCall

_TAG = "<|python_tag|>"
_LLAMA_MARKS = r"<\|python_tag\|>|<\|python_start\|>"
_NAME = r"[A-Za-z_][\w.-]*"
_WORD = rf"{_NAME}\("
_LIST = re.compile(rf"\[\s*{_WORD}")
_CALL = re.compile(_WORD)
# A call that is cut off shows by its first key, or by the name of a tool.
_KEYWORD = re.compile(rf"[\s\[]*({_NAME})\((\s*\w+\s*=)?")
_BARE = re.compile(rf"\{{|\[\s*[{{]|\[\s*{_WORD}|{_WORD}")
_ARGUMENTS = re.compile(r"""["']?(?:arguments|parameters)["']?\s*:""")
# Names of Llama's own tools are called with .call.
_OWN, _OWN_TOOLS = ".call", ("brave_search", "wolfram_alpha")
# What may be a call behind other text: it stands at the beginning of a line.
_BEHIND = rf"(?m:^)[^\S\n]*(?:\[\s*)?{_WORD}"
_AS_CALLS_END = re.compile(r"\)[\s,;]*\]?(?:\s*<\|python_end\|>)?\s*\Z")
_PYTHON_END = re.compile(r"\s*<\|python_end\|>|")
_SEPARATOR, _BETWEEN = re.compile(r"\s*;\s*"), re.compile(r"[\s;,]*")


def literal(value) -> str:
  """A value of JSON as Python writes it."""
  if isinstance(value, dict):
    pairs = (f"{literal(k)}: {literal(v)}" for k, v in value.items())
    return f"{{{', '.join(pairs)}}}"
  if isinstance(value, list | tuple):
    return f"[{', '.join(map(literal, value))}]"
  if value is None or isinstance(value, bool):
    return repr(value)
  return tool_call.to_json(value)


def call(name, arguments, dialect) -> str:
  """A call in Python; keys that are no names stand in **{...}."""
  name = tool_call.name_checked(name, dialect)
  if re.search("[:/]", name):
    raise ValueError(f"the dialect {dialect} cannot spell the tool {name!r}")
  plain, others = [], {}
  for key, value in arguments.items():
    if re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII):
      plain.append(f"{key}={literal(value)}")
    else:
      others[key] = value
  plain += [f"**{literal(others)}"] if others else []
  return f"{name}({', '.join(plain)})"


def _python_list(text, at):
  """[f(a=1), g()], and the place behind it."""
  calls, at = [], loose_json.skip(text, at + 1)
  while text[at : at + 1] != "]":
    name, arguments, at = loose_json.read_call(text, at)
    calls.append(ToolCall(name, arguments))
    at = loose_json.skip(text, at)
    if text[at : at + 1] == ",":
      at = loose_json.skip(text, at + 1)
    elif at >= len(text):
      raise loose_json.Unclosed("cut off before a ']'")
    elif text[at] != "]":
      raise ValueError(f"no comma at character {at}")
  return calls, at + 1


def _one(text, at, key, strict, *, sure, own=False, kinds=()):
  """The call or the list of calls that begins at a place, and its end.

  None where it is no call and, unless `sure`, need not be one: an answer in
  JSON, or words before a bracket.
  """
  try:
    if _LIST.match(text, at):
      return _python_list(text, at)
    if text[at : at + 1] not in ("{", "["):
      name, arguments, at = loose_json.read_call(text, at)
      return [ToolCall(name.removesuffix(_OWN) if own else name, arguments)], at
    if strict:
      record, end = envs_calls.read_json(text, at)
      return [tool_call.of_record(record, key, True)], end
    record, end = tool_call.value_at(text, at)
  except ValueError as error:
    # Outside of code, what is nothing but the beginning of a call is one.
    cut = own and isinstance(error, loose_json.Unclosed)
    if sure or _attempted(text, at) or (cut and _is_cut(text, at, kinds)):
      raise
    return None
  if sure or tool_call.is_call(record):
    return tool_call.of_records(record, key), end
  return None


def _is_cut(text, at, kinds) -> bool:
  """Whether a text that ends too early was meant as a call."""
  found = _KEYWORD.match(text, at)
  return bool(found and (found[2] or found[1] in kinds))


def _attempted(text, at) -> bool:
  """Whether what could not be read was meant as a call."""
  if text[at : at + 1] == "{" or re.compile(r"\[\s*\{").match(text, at):
    return _ARGUMENTS.search(text, at) is not None
  return bool(
    _LIST.match(text, at) or re.compile(r"[\w.-]+\.call\(").match(text, at)
  )


def _read_llama(text, mark, strict, kinds):
  """Calls with ";" between them, or in loose reading a comma or white space."""
  tagged = mark[0].startswith("<|")
  if not tagged and mark.re is not _BARE:
    return _read_behind(text, mark, kinds)
  at = loose_json.skip(text, mark.end() if tagged else mark.start())
  calls, sure = [], tagged or strict
  while True:
    try:
      got = _one(
        text, at, "parameters", strict, sure=sure, own=True, kinds=kinds
      )
    except ValueError as error:
      if not calls:
        raise
      cut = isinstance(error, loose_json.Unclosed)
      fault = ToolCall(None, {}, str(error))
      return [*calls, fault], len(text) if cut else at
    if got is None:
      return (calls, at) if calls else None
    calls += got[0]
    at = _PYTHON_END.match(text, got[1]).end()
    between = (_SEPARATOR if strict else _BETWEEN).match(text, at)
    if between is None or not _BARE.match(text, between.end()):
      return calls, at
    at, sure = between.end(), ";" in between[0]


def _read_behind(text, mark, kinds):
  """Calls behind other text, which are all that follows in the text.

  So that words with brackets are taken for no call, the first has to name a
  tool where the tools are known. Where they are not it has to stand in a list,
  or to be written with ".call".
  """
  at = loose_json.skip(text, mark.start())
  listed = text[at] == "["
  name = text[re.compile(r"[\s\[]*").match(text, at).end() : mark.end() - 1]
  own = name.endswith(_OWN)
  bare = name.removesuffix(_OWN)
  known = name in kinds or (own and (bare in kinds or bare in _OWN_TOOLS))
  if not (known or ((listed or own) and not kinds)):
    return None
  calls = []
  try:
    while at < len(text):
      if not (_LIST if listed else _CALL).match(text, at):
        return [], at
      got, at = _one(text, at, "", False, sure=True, own=True)
      calls += got
      at = _BETWEEN.match(text, _PYTHON_END.match(text, at).end()).end()
  except ValueError as error:
    cut = isinstance(error, loose_json.Unclosed)
    ends = _AS_CALLS_END.search(text, len(text) - 64)
    if not (cut or (known and (listed or own) and ends)):
      # Whatever begins before this place goes on up to it, too.
      return [], max(at, mark.end())
    return [*calls, ToolCall(None, {}, str(error))], len(text)
  return calls, at


def _spell_llama(name, arguments, kinds) -> str:
  record = {"name": name, "parameters": dict(arguments)}
  return f"{_TAG}{tool_call.to_json(record)}"


LLAMA = Form(
  opening=_LLAMA_MARKS, read=_read_llama, spell=_spell_llama,
  start=_BARE, strict_start=_BARE, behind=_BEHIND,
)  # fmt: skip


def _read_pythonic(text, mark, strict, kinds):
  """A list of calls, and in strict reading nothing else."""
  if not strict:
    return _read_llama(text, mark, strict, kinds)
  tagged = mark[0].startswith("<|")
  at = loose_json.skip(text, mark.end() if tagged else mark.start())
  if text[at : at + 1] != "[":
    raise ValueError(f"no list of calls at character {at}")
  calls, at = _python_list(text, at)
  return calls, _PYTHON_END.match(text, at).end()


PYTHONIC = Form(
  opening=_LLAMA_MARKS,
  read=_read_pythonic,
  spell=lambda name, arguments, kinds: f"[{call(name, arguments, 'pythonic')}]",
  start=_BARE,
  strict_start=re.compile(r"\["),
  behind=_BEHIND,
)

_FENCE = r"```(?:tool_code|tool_call|json|python)?[^\S\n]*\n?"
_LANGUAGE = re.compile(r"```(\w*)")
_WRAPPED = re.compile(r"print\(\s*")


def _read_gemma(text, mark, strict, kinds):
  """The calls in a fence of code: one a line, a list, or JSON.

  A fence of another language than tool_code may hold what is no call.
  """
  if not mark[0].startswith("```"):
    return _read_llama(text, mark, strict, kinds)
  language = _LANGUAGE.match(mark[0])[1]
  if strict and language != "tool_code":
    raise ValueError(f"a fence {language!r} instead of tool_code")
  sure = language in ("tool_code", "tool_call")
  calls, at = [], loose_json.skip(text, mark.end())
  while at < len(text) and not text.startswith("```", at):
    # Printing the result of a call is how the family was shown to call.
    wrap = None if strict else _WRAPPED.match(text, at)
    begin = wrap.end() if wrap else at
    try:
      got = _one(text, begin, "arguments", strict, sure=sure or bool(calls))
    except ValueError as error:
      cut = isinstance(error, loose_json.Unclosed)
      fault = ToolCall(None, {}, f"the fence holds no call: {error}")
      return [*calls, fault], len(text) if cut else _fence_end(text, at)
    if got is None:
      return [], _fence_end(text, at)
    calls += got[0]
    at = loose_json.skip(text, got[1])
    if wrap and at < len(text):
      at = tool_call.closed(text, at, ")")
    at = _BETWEEN.match(text, at).end() if not strict else at
    at = loose_json.skip(text, at)
  if not calls and sure:
    raise ValueError("the fence holds no call")
  if strict:
    at = tool_call.closed(text, at, "```") - 3
  return calls, min(at + 3, len(text))


def _fence_end(text, at) -> int:
  end = text.find("```", at)
  return end + 3 if end >= 0 else len(text)


def _spell_gemma(name, arguments, kinds) -> str:
  return f"```tool_code\n{call(name, arguments, 'gemma')}\n```"


GEMMA = Form(
  opening=_FENCE, read=_read_gemma, spell=_spell_gemma, start=_BARE,
  behind=_BEHIND,
)  # fmt: skip
