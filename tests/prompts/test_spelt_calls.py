"""Calls as they are spelt and read back: whatever JSON the arguments are."""

import json
import typing

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.prompts import loose_json, tool_dialects

DIALECTS = typing.get_args(tool_dialects.Dialect)
CALL = tool_dialects.ToolCall


def json_values():
  leaves = (
    st.none() | st.booleans() | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False) | texts()
  )  # fmt: skip
  return st.recursive(
    leaves, lambda x: st.lists(x) | st.dictionaries(texts(), x), max_leaves=6
  )


# What begins, ends or separates anything in some dialect.
MARKS = (
  "<tool_call>", "</tool_call>", "<action>", "</action>", "<|python_tag|>",
  "```tool_code\n", "```", "<think>", "</think>", '{"name": "f"', "'name'",
  '"arguments": {', "}", "]", "[", ",", ":", "f(", "x=", ")", ";", "\\", '"',
  "'", "\\u12", "1e9", "-", "None", "\n", "{", "print(", "<parameter=a>\n",
  "\n</parameter>", "</function>", "<function=f>", "<arg_key>", "</arg_value>",
  "<escape>", '<|"|>', "<end_function_call>", "<start_function_call>call:f{",
  "<|call|>", "<|message|>", "<|channel|>analysis", "<|channel|>", "[ARGS]",
  " to=functions.f", "[TOOL_CALLS]", "[/THINK]", "[THINK]",
  "<｜tool▁call▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
  "<|tool_call>call:f{", "<tool_call|>",
  "<|tool_call_end|>", "<|channel>thought", "<channel|>", "true", "5",
)  # fmt: skip


def texts(size=4):
  plain = st.text(st.characters(codec=None), max_size=3)
  parts = st.lists(st.sampled_from(MARKS) | plain, max_size=size)
  return parts.map("".join)


def anything():
  return texts(25)


SCHEMA = {
  "name": "f", "parameters": {"type": "object", "properties": {
    "s": {"type": "string"}, "i": {"type": "integer"},
    "x": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    "b": {"type": ["boolean", "string"]}, "o": {"type": "object"},
    "a": {"type": "array"}, "e": {"enum": ["1", 2, None]}, "any": {},
  }},
}  # fmt: skip


@hypothesis.settings(max_examples=40)
@hypothesis.given(
  arguments=st.dictionaries(texts(2), json_values(), max_size=3)
)
@hypothesis.example({"text": "a </think> b <think> c"})
@hypothesis.example({"a": "5", "b": " ", "c": '"5"', "d": "\nx\n", "": "null"})
def test_what_is_spelt_is_read_back(arguments):
  for dialect in sorted(set(DIALECTS) - {"action"}):
    text = tool_dialects.spell("f", arguments, dialect)
    for strict in (False, True):
      assert tool_dialects.parse(text, dialect, strict=strict) == [
        CALL("f", arguments)
      ]


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  arguments=st.fixed_dictionaries(
    {},
    optional={
      "s": texts(), "i": st.integers(), "x": st.none() | st.integers(),
      "b": st.booleans() | texts(),
      "o": st.dictionaries(texts(), json_values()),
      "a": st.lists(json_values()), "e": st.sampled_from(["1", 2, None]),
      "any": json_values(),
    },
  )
)  # fmt: skip
@hypothesis.example({"s": "5", "b": "true"})
def test_what_is_spelt_is_read_back_by_the_types_of_a_schema(arguments):
  for dialect in ("qwen3_coder", "glm"):
    text = tool_dialects.spell("f", arguments, dialect, tools=[SCHEMA])
    for strict in (False, True):
      found = tool_dialects.parse(
        text, dialect, strict=strict, tools=[{"function": SCHEMA}]
      )
      assert found == [CALL("f", arguments)]


@hypothesis.given(value=texts().filter(str.strip))
def test_an_action_that_is_spelt_is_read_back(value):
  text = tool_dialects.spell("env_step", {"action": value}, "action")
  for strict in (False, True):
    assert tool_dialects.parse(text, "action", strict=strict) == [
      CALL("action", {"action": value})
    ]


@pytest.mark.parametrize(
  ("text", "tools", "value"),
  [
    ("5", None, 5),
    ("5", "string", "5"),
    ("true", "string", "true"),
    ("True", "boolean", True),
    ("True", None, "True"),
    ("{'a': [None]}", "object", {"a": [None]}),
    ("five", "integer", "five"),
    ("2.5", "integer", "2.5"),
    ("2", "number", 2),
    ("NaN", None, "NaN"),
    ('"quoted"', None, '"quoted"'),
    ("say </parameter> or <function=f>", None,
     "say </parameter> or <function=f>"),
  ],
)  # fmt: skip
def test_values_without_quotes_have_the_types_of_the_schema(text, tools, value):
  schema = {"properties": {"k": {"type": tools}}} if tools else None
  tools = [{"name": "f", "parameters": schema}]
  coder = (
    f"<tool_call>\n<function=f>\n<parameter=k>\n{text}\n</parameter>\n"
    "</function>\n</tool_call>"
  )
  glm = (
    f"<tool_call>f\n<arg_key>k</arg_key>\n<arg_value>{text}</arg_value>\n"
    "</tool_call>"
  )
  for dialect, call in (("qwen3_coder", coder), ("glm", glm)):
    found = tool_dialects.parse(call, dialect, strict=True, tools=tools)
    assert found == [CALL("f", {"k": value})]
    assert type(found[0].arguments["k"]) is type(value)


@hypothesis.settings(max_examples=100)
@hypothesis.given(text=anything(), strict=st.booleans())
def test_no_text_raises(text, strict):
  for dialect in DIALECTS:
    for which in typing.get_args(tool_dialects.Which):
      calls = tool_dialects.parse(text, dialect, strict=strict, which=which)
      assert len(calls) <= 1 or which == "all"
      assert all((call.name is None) == bool(call.error) for call in calls)
      tool_dialects.canonical(calls)


@hypothesis.given(value=json_values())
def test_json_is_read_as_json(value):
  for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
    assert loose_json.read(text) == (value, len(text))
