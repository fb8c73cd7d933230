"""Tool calls in the dialects of model families, tolerant and strict."""

import json
import typing

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import loose_json, tool_dialects

DIALECTS = typing.get_args(tool_dialects.Dialect)
CALL = tool_dialects.ToolCall
WHO = CALL("search", {"query": "who"})
GO = CALL("action", {"action": "go to desk 1"})

EXACT = {
  "hermes": (
    '<tool_call>\n{"name": "search", "arguments": {"query": "who"}}\n'
    "</tool_call>",
    WHO,
  ),
  "llama": (
    '<|python_tag|>{"name": "search", "parameters": {"query": "who"}}', WHO
  ),
  "gemma": ('```tool_code\nsearch(query="who")\n```', WHO),
  "action": ("<action>go to desk 1</action>", GO),
}  # fmt: skip

JSON = '{"name": "search", "arguments": {"query": "who"}}'
PARAMETERS = JSON.replace("arguments", "parameters")
ESCAPED = JSON.replace('{"query": "who"}', r'"{\"query\": \"who\"}"')
QUOTES = "{'name': 'search', 'arguments': {'query': 'who',},}"
BARE = '{"function": {name: "search", "parameters": {query: "who"}}}'

LOOSE = [
  ("hermes", f"Sure! <tool_call>{JSON}</tool_call> ok?"),
  ("hermes", f"<tool_call>{QUOTES}</tool_call>"),
  ("hermes", f"<tool_call>{JSON[:-1]}"),
  ("hermes", f"<tool_call>```json\n{ESCAPED}```</tool_call>"),
  ("hermes", f"<tool_call>{BARE}</tool_call>"),
  ("hermes", f"I call {JSON} now"),
  ("llama", f"{PARAMETERS} and so on"),
  ("llama", f"I will <|python_tag|>{QUOTES}"),
  ("llama", f"I will call {PARAMETERS}."),
  ("gemma", "See:\n```tool_code\nprint(search(query='who'))\n```\nDone."),
  ("gemma", f"```json\n{PARAMETERS}"),
  ("gemma", "```tool_code\nsearch(query='who'"),
]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_exact_form_is_read_either_way(dialect):
  text, call = EXACT[dialect]
  text = f"<think>\n{text} was wrong\n</think>\n{text}\n"
  for strict in (False, True):
    assert tool_dialects.parse(text, dialect, strict=strict) == [call]


@pytest.mark.parametrize(("dialect", "text"), LOOSE)
def test_what_models_write_is_understood_unless_strict(dialect, text):
  assert tool_dialects.parse(text, dialect) == [WHO]
  calls = tool_dialects.parse(text, dialect, strict=True)
  assert all(call.name is None for call in calls)


def test_llama_calls_in_python_and_without_a_tag():
  for text in ("<|python_tag|>search.call(query='who')", PARAMETERS):
    for strict in (False, True):
      assert tool_dialects.parse(text, "llama", strict=strict) == [WHO]


def test_an_action_is_read_though_it_is_never_closed():
  assert tool_dialects.parse("ok <action> go to desk 1\n", "action") == [GO]
  strict = tool_dialects.parse("<action>go to desk 1", "action", strict=True)
  assert strict == [CALL(None, {}, "<action> is never closed")]
  outside = tool_dialects.parse(f"a{EXACT['action'][0]}", "action", strict=True)
  assert outside == [CALL(None, {}, "text outside of the calls")]


def test_one_call_of_several_is_kept_by_choice():
  text = "<action>a</action> no: <action></action><action>b</action>"
  names = lambda **options: [
    call.arguments.get("action")
    for call in tool_dialects.parse(text, "action", **options)
  ]
  assert names() == ["a", None, "b"]
  assert names(which="first") == ["a"]
  assert names(which="last") == ["b"]
  two = '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}'
  for strict in (False, True):
    calls = tool_dialects.parse(two, "llama", strict=strict)
    assert [call.name for call in calls] == ["f", "g"]
  fence = "```tool_code\nf(x=[1, 2.5, -3])\ng(y={'a': None})\n```"
  for strict in (False, True):
    calls = tool_dialects.parse(fence, "gemma", strict=strict)
    assert calls == [
      CALL("f", {"x": [1, 2.5, -3]}), CALL("g", {"y": {"a": None}})
    ]  # fmt: skip


@pytest.mark.parametrize(
  ("body", "error"),
  [
    ("{]", "not JSON"),
    ("", "not JSON: no object"),
    ('{"name": 3}', 'expected {"name": ..., "arguments": {...}}'),
    ('{"name": "f", "arguments": [1]}', "arguments of f are no object"),
    ('{"name": "f", "arguments": "x"}', "the arguments are not JSON"),
    ('{"name": "f" "arguments": {}}', "no comma at character"),
    ('{"name": "f', "a string is not closed"),
    ("{" + '"a": {' * 80, "nested more than 64 times"),
  ],
)
def test_what_is_wrong_with_a_call_is_said(body, error):
  (call,) = tool_dialects.parse(f"<tool_call>{body}</tool_call>", "hermes")
  assert call.name is None
  assert error in call.error
  strict = tool_dialects.parse(
    '<tool_call>{"name": "f", "arguments": {}, "id": 1}</tool_call>',
    "hermes", strict=True,
  )  # fmt: skip
  assert strict == [CALL(None, {}, "unknown keys")]
  with pytest.raises(ValueError, match="dialect='xml' is none of hermes"):
    tool_dialects.parse("", "xml")
  with pytest.raises(ValueError, match="which='best' is none of all"):
    tool_dialects.parse("", "hermes", which="best")


def anything():
  marks = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<action>", "</action>", "<|python_tag|>",
     "```tool_code\n", "```", "<think>", "</think>", '{"name": "f"', "'name'",
     '"arguments": {', "}", "]", "[", ",", ":", "f(", "x=", ")", ";", "\\",
     '"', "'", "\\u12", "1e9", "-", "None", "\n", "{", "print("]
  )  # fmt: skip
  text = st.text(st.characters(codec=None), max_size=6)
  return st.lists(marks | text, max_size=25).map("".join)


@hypothesis.settings(max_examples=300)
@hypothesis.given(text=anything(), strict=st.booleans())
def test_no_text_raises(text, strict):
  for dialect in DIALECTS:
    for which in typing.get_args(tool_dialects.Which):
      calls = tool_dialects.parse(text, dialect, strict=strict, which=which)
      assert len(calls) <= 1 or which == "all"
      assert all((call.name is None) == bool(call.error) for call in calls)
      tool_dialects.canonical(calls)


def json_values():
  leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
  return st.recursive(
    leaves, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8
  )


@hypothesis.given(value=json_values())
def test_json_is_read_as_json(value):
  text = json.dumps(value)
  assert loose_json.read(text) == (value, len(text))


@hypothesis.given(query=st.text(min_size=1).filter(str.strip))
def test_environments_read_what_every_dialect_says(query):
  calls = [CALL("search", {"query": query}), CALL(None, {}, "a fault")]
  found = envs_calls.parse(
    tool_dialects.canonical(calls), {"search": "query"}, most=3, strict=True
  )
  assert found == [envs_calls.Call("search", query.strip())]
  assert tool_dialects.canonical([GO]) == "go to desk 1"


@pytest.mark.parametrize(
  "unit",
  ["<tool_call>", "{", '{"name', "```", "<action>", "f(", "\\", "'{name"],
)
def test_long_texts_of_openings_are_read_to_their_end(unit):
  # Anything but linear time in the text would show as minutes.
  for dialect in DIALECTS:
    for strict in (False, True):
      calls = tool_dialects.parse(unit * 50_000, dialect, strict=strict)
      assert all(call.name in (None, "action") for call in calls)
