"""No call is lost without a word, and no words are taken for a call."""

import typing

import pytest

from steppo_jax.prompts import tool_dialects

DIALECTS = sorted(set(typing.get_args(tool_dialects.Dialect)) - {"action"})
PYTHON = ("gemma", "llama", "pythonic")
CALL = tool_dialects.ToolCall
WHO, LOOK = CALL("search", {"query": "who"}), CALL("look", {})
TOOLS = [{"name": "search"}, {"function": {"name": "look"}}]
SAID = "I will look it up."


@pytest.mark.parametrize("dialect", PYTHON)
@pytest.mark.parametrize(
  ("text", "calls"),
  [
    ('[search(query="who")]', [WHO]),
    ('  [ search(query="who"), look()]\n\n', [WHO, LOOK]),
    ('[search(query="who")]<|python_end|>', [WHO]),
    ('[search(query="who")]\n[look()]', [WHO, LOOK]),
    ('[\n  search(\n    query="who",\n  ),\n]', [WHO]),
    ('search.call(query="who")', [WHO]),
    ('search.call(query="who"); look.call()', [WHO, LOOK]),
  ],
)
def test_calls_behind_words_are_read(dialect, text, calls):
  for tools in (TOOLS, None):
    for words in (
      f"{SAID}\n",
      f"{SAID}\n[1] says so.\n\n",
      "<think>a</think>.",
    ):
      whole = f"{words}\n{text}"
      assert tool_dialects.parse(whole, dialect, tools=tools) == calls
      (fault,) = tool_dialects.parse(whole, dialect, strict=True, tools=tools)
      assert fault.error


@pytest.mark.parametrize("dialect", PYTHON)
def test_a_bare_call_behind_words_needs_a_tool_that_is_known(dialect):
  text = f'{SAID}\nsearch(query="who")\nlook()'
  assert tool_dialects.parse(text, dialect, tools=TOOLS) == [WHO, LOOK]
  assert tool_dialects.parse(text, dialect) == []
  own = f'{SAID}\nbrave_search.call(query="who")'
  for tools in (TOOLS, None):
    assert tool_dialects.parse(own, dialect, tools=tools) == [
      CALL("brave_search", {"query": "who"})
    ]


@pytest.mark.parametrize("dialect", PYTHON)
@pytest.mark.parametrize("text", ['search(query="who', "search(query=1, look"])
def test_an_answer_that_is_the_beginning_of_a_call_is_a_fault(dialect, text):
  for tools in (TOOLS, None):
    (fault,) = tool_dialects.parse(text, dialect, tools=tools)
    assert fault.error
  code = "```python\nprint(x)\nsearch(quer"
  assert tool_dialects.parse(code, dialect) == []
  assert tool_dialects.parse('{"name": "x", "quer', dialect) == []


@pytest.mark.parametrize("dialect", PYTHON)
@pytest.mark.parametrize(
  "text",
  [
    '[search("who")]',
    "[search(query=who)]",
    '[search(query="who") look()]',
    '[search(query="who", query="x")]',
    'search.call("who")',
    '[search(query="who',
    '[search(query="who"), lo',
    'search(query="who',
    '[search(query="who")]\n[look(x=Tr',
  ],
)
def test_a_broken_call_of_a_known_tool_behind_words_is_a_fault(dialect, text):
  calls = tool_dialects.parse(f"{SAID}\n{text}", dialect, tools=TOOLS)
  assert calls[-1].error, text


@pytest.mark.parametrize("dialect", PYTHON)
@pytest.mark.parametrize(
  ("text", "tools"),
  [
    ("[see(the first) and more]", None),
    ("[search(query) is how you search]", TOOLS),
    ("search(query) finds a page.", TOOLS),
    ('search(query="who") is how you search.', TOOLS),
    ("call me(at night)", TOOLS),
    ("me(you=1)", TOOLS),
    ("[note(a=1)]", TOOLS),
    ("[note](https://a.b/c(d=1))", None),
    ('[f(a=1)] is what I would "call".', None),
    ("[a(b)](http://c)\n- [d(e)](http://f)", None),
    ("x.call(a=1)", TOOLS),
    ("print(x)\n[1, 2]", None),
    ("def search(query):\n  return [f(x) for x in query]", TOOLS),
    ('So: [search(query="who")]', None),
  ],
)
def test_words_and_code_are_no_calls(dialect, text, tools):
  assert tool_dialects.parse(f"{SAID}\n{text}", dialect, tools=tools) == []


def test_calls_behind_words_leave_other_calls_alone():
  record = '{"name": "search", "parameters": {"query": "who"}}'
  tagged = f"<|python_tag|>{record}"
  for first in (f"I call {record}", f"I call {tagged}"):
    calls = tool_dialects.parse(f"{first}\nthen\n[look()]", "llama")
    assert calls == [WHO, LOOK]


ARGUMENTS = '{"query": "who"}'
BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
ONE, SEP, DONE = (
  "<｜tool▁call▁begin｜>",
  "<｜tool▁sep｜>",
  "<｜tool▁call▁end｜>",
)
K_BEGIN, K_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
K_ONE, K_DONE = "<|tool_call_begin|>", "<|tool_call_end|>"
K_SEP = "<|tool_call_argument_begin|>"
OLD = f"function{SEP}search\n```json\n{ARGUMENTS}\n```{DONE}"
NEW, LOOKS = f"search{SEP}{ARGUMENTS}{DONE}", f"look{SEP}{{}}{DONE}"
KIMI = f"functions.search:0{K_SEP}{ARGUMENTS}{K_DONE}"
K_LOOKS = f"functions.look:1 {K_SEP}{{}}{K_DONE}"
TO = f"to=functions.search<|message|>{ARGUMENTS}<|call|>"


@pytest.mark.parametrize(
  ("dialect", "text", "calls"),
  [
    ("deepseek", f"{BEGIN}{OLD}{END}", [WHO]),
    ("deepseek", f"{BEGIN}{NEW}{END}", [WHO]),
    ("deepseek", f"{BEGIN}\n{NEW}\n{LOOKS}\n{END}", [WHO, LOOK]),
    ("deepseek", f"{BEGIN}{ONE}{NEW}{LOOKS}{END}", [WHO, LOOK]),
    ("deepseek", f"{BEGIN}{NEW}{ONE}{LOOKS}{END}", [WHO, LOOK]),
    ("deepseek", f"I call {NEW}", [WHO]),
    ("deepseek",
     f'{BEGIN}{{"name": "search", "arguments": {ARGUMENTS}}}{END}', [WHO]),
    ("deepseek", f"{BEGIN}{END}", []),
    ("kimi", f"{K_BEGIN}{KIMI}{K_END}", [WHO]),
    ("kimi", f"{K_BEGIN}{KIMI}{K_LOOKS}{K_END}", [WHO, LOOK]),
    ("kimi", f"{K_BEGIN}{K_ONE}{KIMI}\n{K_LOOKS}{K_END}", [WHO, LOOK]),
    ("kimi", f"{K_BEGIN}\n{KIMI}{K_ONE}{K_LOOKS}{K_END}", [WHO, LOOK]),
    ("kimi", f"So {KIMI}", [WHO]),
    ("harmony", f"<|channel|>commentary<|constrain|>json {TO}", [WHO]),
    ("harmony", f"<|channel|>analysis <|constrain|>json {TO}", [WHO]),
    ("harmony", f"<|channel|>commentary json {TO}", [WHO]),
    ("harmony", "<|channel|>commentary<|message|>to=functions.search<|end|>",
     []),
    ("harmony", "<|channel|>final<|message|>Write to=functions.f!", []),
  ],
)  # fmt: skip
def test_calls_without_the_mark_before_them_are_read(dialect, text, calls):
  for words in ("", SAID):
    assert tool_dialects.parse(f"{words}{text}", dialect) == calls
  strict = tool_dialects.parse(text, dialect, strict=True)
  assert not calls or strict[0].error


@pytest.mark.parametrize(
  ("dialect", "text", "faults"),
  [
    ("deepseek", f"{BEGIN}search {ARGUMENTS}{END}", 1),
    ("deepseek", f"{BEGIN}search{END}", 1),
    ("deepseek", f"{BEGIN}{ONE}{SEP}{ARGUMENTS}{DONE}{END}", 1),
    ("deepseek", f"{BEGIN}{ONE}function{SEP}search\n{ARGUMENTS}{DONE}{END}", 1),
    ("deepseek", f"{BEGIN}{SEP}{ARGUMENTS}{DONE}{END}", 1),
    ("deepseek", f"{BEGIN}{ONE}x{DONE}y{SEP}z{DONE}", 2),
    ("kimi", f"{K_BEGIN}functions.search:0{ARGUMENTS}{K_END}", 1),
    ("kimi", f"{K_BEGIN}{K_ONE}a b{K_SEP}{ARGUMENTS}{K_DONE}{K_END}", 1),
    ("harmony", "<|channel|>commentary to=functions.search", 1),
    ("harmony", "<|channel|>commentary to=functions.search<|end|>", 1),
    ("harmony", "<|channel|>commentary to=f <|constrain|>json", 1),
    ("harmony", "<|channel|>commentary<|constrain|>json to=functions.f", 1),
    ("harmony", "<|start|>assistant to=functions.search", 1),
    ("harmony", " to=functions.search<|channel|>comm", 1),
    ("harmony", "to=functions.search", 1),
    ("harmony", f"<|channel|>notes {TO}<|channel|>commentary to=", 1),
  ],
)
def test_what_is_left_of_a_call_is_a_fault(dialect, text, faults):
  found = tool_dialects.parse(text, dialect)
  assert len([call for call in found if call.error]) == faults, found


# The longest beginning of two calls in which nothing shows that a call begins.
SILENT = {
  "hermes": "<tool_call", "qwen3_coder": "<tool_call", "glm": "<tool_call",
  "llama": "<|python_tag|", "gemma": "```tool_cod", "pythonic": "[search",
  "functiongemma": "<start_function_call", "gemma4": "<|tool_call",
  "deepseek": BEGIN[:-1], "kimi": K_BEGIN[:-1], "mistral": "[TOOL_CALLS",
  "harmony": "<|channel|>commentary to",
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_beginning_of_a_call_is_a_call_or_a_fault(dialect):
  arguments = {"query": "who", "n": [1.5, {"a": True}], "b": None}
  text = tool_dialects.spell("search", arguments, dialect)
  for words in ("", f"{SAID}\n"):
    for size in range(len(SILENT[dialect]) + 1, len(text) + 1):
      found = tool_dialects.parse(f"{words}{text[:size]}", dialect)
      assert found, text[:size]
      assert all(call.error or call.arguments == arguments for call in found), (
        text[:size]
      )


def test_two_calls_that_are_cut_off_behind_words_are_a_fault():
  text = '[search(query="who", n=-1.5), look(**{"a b": None}), look()]'
  for size in range(len("[search("), len(text)):
    for tools in (TOOLS, None):
      found = tool_dialects.parse(
        f"{SAID}\n{text[:size]}", "pythonic", tools=tools
      )
      assert found[-1].error, text[:size]


def test_a_call_of_glm_ends_with_its_closing_tag_or_the_next_call():
  text = tool_dialects.spell("search", {"query": "who"}, "glm")
  cut = text.removesuffix("</tool_call>")
  # At the end nothing shows that there were no more arguments.
  (fault,) = tool_dialects.parse(cut, "glm")
  assert fault.error == "cut off before </tool_call>"
  (fault,) = tool_dialects.parse(f"{cut}So.", "glm")
  assert fault.error == "the value of 'query' is never closed"
  assert tool_dialects.parse(f"{cut}{text}", "glm") == [WHO, WHO]
  assert tool_dialects.parse(f"{cut}{text}", "glm", strict=True)[0].error


@pytest.mark.parametrize(
  ("dialect", "text", "tools"),
  [
    ("harmony", "\n" * 10**5, None),
    ("harmony", " assistant " * 10**4, None),
    ("pythonic", "so\n" + "search(a=1)\n" * 10**4 + "search(a b)\n", True),
    ("llama", "so\n" + "[search(a=1)]\n" * 10**4 + "[search(a b)]", None),
    ("gemma", "so\n[" + "search(a=1),\n" * 10**4 + " bad", True),
    ("kimi", "a" * 10**5 + "<|tool_call_argument_begin|>" * 10**4, None),
  ],
)
def test_long_answers_are_read_in_one_walk(dialect, text, tools):
  """With another walk for each line this would not end."""
  tools = [{"name": "search", "parameters": {}}] if tools else None
  found = tool_dialects.parse(text, dialect, tools=tools)
  assert all(call.error for call in found if call.name is None)


@pytest.mark.parametrize(
  ("dialect", "text"),
  [
    ("pythonic", "Answer(s"), ("llama", "f("), ("gemma", "so\nnote(s"),
    ("harmony", "assistant to=functions.search is how one calls it"),
  ],
)  # fmt: skip
def test_words_that_look_like_the_beginning_of_a_call_are_none(dialect, text):
  assert not tool_dialects.parse(text, dialect)
  tools = [{"name": "look", "parameters": {}}]
  assert not tool_dialects.parse(text, dialect, tools=tools)
