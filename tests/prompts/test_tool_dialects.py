"""Tool calls in the dialects of model families, tolerant and strict."""

import typing

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.envs import calls as envs_calls
from steppo_jax.prompts import tool_dialects

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
  "pythonic": ('[search(query="who")]', WHO),
  "functiongemma": (
    "<start_function_call>call:search{query:<escape>who<escape>}"
    "<end_function_call>",
    WHO,
  ),
  "gemma4": ('<|tool_call>call:search{query:<|"|>who<|"|>}<tool_call|>', WHO),
  "qwen3_coder": (
    "<tool_call>\n<function=search>\n<parameter=query>\nwho\n</parameter>\n"
    "</function>\n</tool_call>",
    WHO,
  ),
  "glm": (
    "<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>who</arg_value>\n"
    "</tool_call>",
    WHO,
  ),
  "deepseek": (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>"
    '{"query": "who"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    WHO,
  ),
  "kimi": (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0"
    '<|tool_call_argument_begin|>{"query": "who"}<|tool_call_end|>'
    "<|tool_calls_section_end|>",
    WHO,
  ),
  "mistral": (
    '[TOOL_CALLS][{"name": "search", "arguments": {"query": "who"}}]', WHO
  ),
  "harmony": (
    "<|channel|>commentary to=functions.search <|constrain|>json<|message|>"
    '{"query": "who"}<|call|>',
    WHO,
  ),
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
  ("gemma", "```tool_code\nsearch(query='who')"),
  ("gemma", '[search(query="who")]'),
  ("gemma", 'search(query="who")'),
  ("pythonic", 'So: <|python_start|>[search(query="who")]<|python_end|> ok'),
  ("functiongemma", "So <start_function_call>call:search{query: 'who'}"),
  ("qwen3_coder", EXACT["qwen3_coder"][0].replace("<tool_call>", "So")),
  ("qwen3_coder", f"<tool_call>{JSON}</tool_call>!"),
  ("glm", f"<tool_call>{JSON}</tool_call>!"),
  ("deepseek", "So " + EXACT["deepseek"][0].replace('"', "'")),
  ("mistral", f"So [TOOL_CALLS]{JSON}"),
  ("harmony", "Hm." + EXACT["harmony"][0].removesuffix("<|call|>")),
]

# Other forms that templates or models of the family write.
ALSO_EXACT = [
  ("llama", "<|python_tag|>search.call(query='who')"),
  ("llama", PARAMETERS),
  ("llama", "[search(query='who')]"),
  ("pythonic", "<|python_start|>[search(query='who')]<|python_end|>"),
  ("mistral", '[TOOL_CALLS]search[ARGS]{"query": "who"}'),
  ("mistral", '[TOOL_CALLS]search[CALL_ID]a1b2[ARGS]{"query": "who"}'),
  (
    "deepseek",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n"
    '```json\n{"query": "who"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
  ),
  (
    "harmony",
    "<|channel|>analysis<|message|>no: to=functions.f {}<|end|>"
    "<|start|>assistant to=functions.search<|channel|>"
    'commentary json<|message|>{"query": "who"}',
  ),
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


@pytest.mark.parametrize(("dialect", "text"), ALSO_EXACT)
def test_other_forms_of_a_family_are_exact_too(dialect, text):
  for strict in (False, True):
    assert tool_dialects.parse(text, dialect, strict=strict) == [WHO]


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
    ('{"name": "f"}', 'expected {"name": ..., "arguments": {...}}'),
    ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "'a' occurs twice"),
    ('{"name": "f", "arguments": {"a": NaN}}', "no value at character"),
    ('{"name": "f", "arguments": {"a": 1e999}}', "too large for a number"),
    ('{"name": "f", "arguments": [1]}', "arguments of f are no object"),
    ('{"name": "f", "arguments": "x"}', "the arguments are not JSON"),
    ('{"name": "f" "arguments": {}}', "no comma at character"),
    ('{"name": "f', "a string is not closed"),
    ("[]", 'expected {"name": ..., "arguments": {...}}'),
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


def several(dialect, separator="\n"):
  """Two calls of one answer."""
  one = lambda query: tool_dialects.spell("search", {"query": query}, dialect)
  return separator.join([one("a"), one("b")])


BOTH = [CALL("search", {"query": "a"}), CALL("search", {"query": "b"})]
A, B = (f'{{"name": "search", "arguments": {{"query": "{x}"}}}}' for x in "ab")


@pytest.mark.parametrize(
  ("dialect", "text"),
  [
    *((d, several(d, "")) for d in sorted(set(DIALECTS) - {"action", "llama"})),
    ("hermes", f"<tool_call>\n{A}\n{B}\n</tool_call>"),
    ("hermes", f"<tool_call>{A}{B}</tool_call>"),
    ("hermes", f"<tool_call>[{A}, {B}]</tool_call>"),
    ("hermes", f"{A}\nand\n{B}"),
    ("hermes", f"[{A}, {B}]"),
    ("llama", f"{A}; {B}"),
    ("llama", f"{A}\n{B}"),
    ("llama", f"<|python_tag|>{A}{B}"),
    ("llama", f"[{A}, {B}]"),
    ("llama", '[search(query="a"), search(query="b")]'),
    ("pythonic", 'So.\n<|python_start|>[search(query="a"), search(query="b")]'),
    ("gemma", "```tool_code\n[search(query='a'), search(query='b')]\n```"),
    ("gemma", "```tool_code\nsearch(query='a')\nsearch(query='b')\n```"),
    ("gemma", f"```json\n[{A}, {B}]\n```"),
    ("gemma", f"```json\n{A}\n{B}\n```"),
    ("mistral", f"[TOOL_CALLS][{A}, {B}]"),
    ("qwen3_coder", several("qwen3_coder").replace(
      "</tool_call>\n<tool_call>\n", "")),
  ],
)  # fmt: skip
def test_no_call_of_several_is_lost(dialect, text):
  assert tool_dialects.parse(text, dialect) == BOTH
  strict = tool_dialects.parse(text, dialect, strict=True)
  assert strict == BOTH or strict[-1].error


@pytest.mark.parametrize("dialect", sorted(set(DIALECTS) - {"action"}))
@pytest.mark.parametrize("strict", [False, True])
def test_a_call_that_was_cut_off_is_a_fault(dialect, strict):
  arguments = {"path": "a", "mode": {"w": [1, 12]}}
  text = tool_dialects.spell("f", arguments, dialect)
  # Up to where all that follows is the end of the call.
  whole = text.rindex("12" if "12" in text else "]") + 2
  begun = max(text.find("path"), 1)
  for size in range(begun, whole):
    calls = tool_dialects.parse(text[:size], dialect, strict=strict)
    assert [call.name for call in calls] == [None], text[:size]


@pytest.mark.parametrize(
  "other", ['{"name": "g"}', "3", '"x"', "{}", '{"name": "g", "arg', '{"na']
)
def test_what_stands_in_a_list_beside_a_call_is_no_silence(other):
  for dialect in ("hermes", "llama", "mistral", "qwen3_coder", "glm"):
    closing = "]" if other[-1] in '}3"' else ""
    found = tool_dialects.parse(f"[{A}, {B}, {other}{closing}", dialect)
    assert found[-1].error, dialect
    if closing:
      assert found[:2] == BOTH, dialect
      assert len(found) == 3


@pytest.mark.parametrize(
  ("dialect", "text"),
  [
    ("hermes", 'The result is {"name": "Alice", "age": 3}.'),
    ("hermes", '{"name": "Alice", "age": '),
    ("llama", '{"name": "Alice", "age": 3}'),
    ("llama", '[{"name": "Alice"}, {"name": "Bob"}]'),
    ("llama", "f(x) is a function, [1] says"),
    ("pythonic", "[1, 2, 3]"),
    ("gemma", '```json\n{"name": "my-app", "version": "1.0"}\n```'),
    ("gemma", "```python\nx = 5\n```\n\nNot search(query='a')"),
    ("mistral", '{"name": "Alice", "age": 3}'),
    ("deepseek", '{"type": "object", "name": "x"}'),
  ],
)
def test_an_answer_in_json_or_code_is_no_call(dialect, text):
  assert tool_dialects.parse(text, dialect) == []


THOUGHT = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
CALLED = EXACT["hermes"][0]


@pytest.mark.parametrize(
  ("text", "opened"),
  [
    (f"<think>{THOUGHT}</think>{CALLED}", False),
    (f"{THOUGHT}</think>\n\n{CALLED}", False),
    (f"{THOUGHT}</think>\n\n{CALLED}", True),
    (f"<think>{THOUGHT}</think>{CALLED}", True),
    (f"<think>a<think>{THOUGHT}</think>{THOUGHT}</think>{CALLED}", False),
    (f"<think>use <think> tags {THOUGHT}</think>{CALLED}", False),
    (f"[THINK]{THOUGHT}[/THINK]{CALLED}", False),
    (f"<|START_THINKING|>{THOUGHT}<|END_THINKING|>{CALLED}", False),
    (f"<|channel>thought\n{THOUGHT}<channel|>{CALLED}", False),
    (f"<seed:think>{THOUGHT}</seed:think>{CALLED}", False),
    (f"<think>{THOUGHT}</think>{CALLED}<think>{THOUGHT}</think>", False),
    (f"{CALLED}<think>{THOUGHT}", False),
    (f"{THOUGHT}</think>{THOUGHT}</think>{CALLED}", False),
  ],
)
def test_a_thought_never_acts(text, opened):
  for strict in (False, True):
    found = tool_dialects.parse(text, "hermes", strict=strict, opened=opened)
    assert found == [WHO]


def test_a_thought_that_the_prompt_opened_and_none_closed_is_all_there_is():
  assert tool_dialects.parse(CALLED, "hermes", opened=True) == []
  assert envs_calls.without_thoughts("go to desk 1", opened=True) == ""
  assert envs_calls.opens_thought("<|im_start|>assistant\n<think>\n")
  assert not envs_calls.opens_thought("assistant\n<think>\n\n</think>\n\n")
  final = (
    "<|channel|>analysis<|message|>look<|end|><|start|>assistant<|channel|>"
    "final<|message|>go<|return|>"
  )
  assert envs_calls.without_thoughts(final) == "go"


def test_a_string_that_is_never_closed_holds_no_call():
  inner = "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>"
  text = f'<tool_call>{{"name": "g", "arguments": {{"text": "{inner}'
  (call,) = tool_dialects.parse(text, "hermes")
  assert call.error == "the tool call is not JSON: a string is not closed"
  (call,) = tool_dialects.parse("```tool_code\ng(x='```tool_code\nf()", "gemma")
  assert "a string is not closed" in call.error


def test_what_cannot_be_spelt_is_refused():
  with pytest.raises(ValueError, match="not JSON compliant"):
    tool_dialects.spell("f", {"x": float("nan")}, "hermes")
  for dialect in ("glm", "qwen3_coder", "gemma", "kimi", "harmony"):
    with pytest.raises(ValueError, match="cannot spell the tool 'a b'"):
      tool_dialects.spell("a b", {}, dialect)


@hypothesis.given(query=st.text(min_size=1).filter(str.strip))
def test_environments_read_what_every_dialect_says(query):
  calls = [CALL("search", {"query": query}), CALL(None, {}, "a fault")]
  found = envs_calls.parse(
    tool_dialects.canonical(calls), {"search": "query"}, most=3, strict=True
  )
  assert found[0] == envs_calls.Call("search", query.strip())
  # A fault is told to the environment, which counts it.
  assert [call.name for call in found] == ["search", None]
  assert tool_dialects.canonical([GO]) == "go to desk 1"


@pytest.mark.parametrize(
  "unit",
  ["<tool_call>", "<tool_call>{}", "{", '{"name', "```", "f(", "\\", "'{name"],
)
def test_long_texts_of_openings_are_read_to_their_end(unit):
  # Anything but linear time in the text would show as minutes.
  for dialect in DIALECTS:
    for strict in (False, True):
      calls = tool_dialects.parse(unit * 5_000, dialect, strict=strict)
      assert all(call.name in (None, "action") for call in calls)
