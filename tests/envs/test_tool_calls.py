"""Reading tool calls, whatever a policy wrote."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from steppo_jax.envs import calls as envs_calls

TOOLS = {"search": "query", "answer": "text"}


def _parse(text, **options):
  return [tuple(c) for c in envs_calls.parse(text, TOOLS, most=4, **options)]


def _json(name, **arguments):
  record = {"name": name, "arguments": arguments}
  return f"<tool_call>{json.dumps(record)}</tool_call>"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
  ("text", "calls"),
  [
    ("<search> Big Fish </search>", [("search", "Big Fish")]),
    (_json("search", query="Big Fish"), [("search", "Big Fish")]),
    (
      "<think>so <search>no</search></think>\n<search>a</search>\n"
      + _json("answer", text="b"),
      [("search", "a"), ("answer", "b")],
    ),
    ("<search>a < b & <i>c</i></search>", [("search", "a < b & <i>c</i>")]),
    ("", []),
    ("<think>never ends <search>a</search>", []),
    ("<search>a</search> or not</think><search>b</search>", [("search", "b")]),
    ("<think>a<think>b</think><search>a</search></think>", []),
    ("[THINK]<search>a</search>[/THINK]<search>b</search>", [("search", "b")]),
    (_json("search", query="a </tool_call> b"),
     [("search", "a </tool_call> b")]),
    (_json("search", query="a <think> b"), [("search", "a <think> b")]),
  ],
)  # fmt: skip
def test_calls_with_tags_are_read_in_order(text, calls, strict):
  assert _parse(text, strict=strict) == calls


@pytest.mark.parametrize(
  ("text", "calls"),
  [
    ("search who directed Big Fish", [("search", "who directed Big Fish")]),
    ("  answer\tTim\nBurton ", [("answer", "Tim\nBurton")]),
    ("I search for it", []),
    ("search", []),
    ("Let me see. <search>a</search> Hm.", [("search", "a")]),
    (
      '<tool_call>{"name": "search", "id": 1, "arguments": '
      '"{\\"query\\": \\"a\\", \\"top\\": 3}"}</tool_call>',
      [("search", "a")],
    ),
    (
      '<tool_call>{"name": "search", "arguments": {"query": "a"}}\n'
      '{"name": "answer", "arguments": {"text": "b"}}</tool_call>',
      [("search", "a"), ("answer", "b")],
    ),
    (
      '<tool_call>[{"name": "search", "arguments": {"query": "a"}}, '
      '{"name": "answer", "arguments": {"text": "b"}}]</tool_call>',
      [("search", "a"), ("answer", "b")],
    ),
  ],
)
def test_only_the_lenient_rules_forgive(text, calls):
  assert _parse(text) == calls
  assert all(name is None for name, _ in _parse(text, strict=True))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
  "text",
  [
    "<search></search>",
    "<search>never closed",
    "<tool_call>search</tool_call>",
    "<tool_call>[]</tool_call>",
    "<tool_call>" + "[" * 5000 + "</tool_call>",
    _json("fly", query="a"),
    '<tool_call>{"name": "search", "arguments": {"query": "a", "query": "b"}}'
    "</tool_call>",
    '<tool_call>{"name": "search", "arguments": {"query": NaN}}</tool_call>',
    '<tool_call>{"name": "search", "arguments": {"query": "cut </tool_call> '
    "<search>a</search>",
    _json("search", text="a"),
    _json("search", query=1706.03762),
    _json("search", query=" "),
    _json("search", query=["a"]),
    '<tool_call>{"name": ["search"], "arguments": {}}</tool_call>',
    '<tool_call>{"name": "search", "arguments": "{"}</tool_call>',
  ],
)
def test_what_cannot_be_understood_is_one_call_without_a_name(text, strict):
  ((name, why),) = _parse(text, strict=strict)
  assert name is None
  assert why


def test_reading_stops_after_the_most_calls():
  text = "".join(f"<search>{n}</search>" for n in range(9))
  assert [argument for _, argument in _parse(text)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
  "piece",
  ["<search>", "<tool_call>", "<think>", "<think></think>", "</search>", "[",
   "<search></answer>", "<|im_end|>", "\x00\ud800", "search "],
)  # fmt: skip
def test_100_kb_of_anything_are_read_at_once(piece):
  text = piece * (100_000 // len(piece))
  # A reader that is not linear would take minutes here.
  calls = envs_calls.parse(text, TOOLS, most=5)
  assert all(call.name in (None, "search") for call in calls)


_PIECES = st.sampled_from(
  ["<search>", "</search>", "<answer>", "</answer>", "<tool_call>", "{", "}",
   "</tool_call>", "<think>", "</think>", '"name"', ":", "a", " ", "search",
   '{"name": "search", "arguments": {"query": "b"}}', "<|endoftext|>"]
)  # fmt: skip


@hypothesis.given(
  st.one_of(st.text(), st.lists(_PIECES).map("".join)), st.booleans()
)
def test_any_text_is_read_without_an_error(text, strict):
  for call in envs_calls.parse(text, TOOLS, most=3, strict=strict):
    assert call.name in (None, *TOOLS)
    assert call.argument == call.argument.strip() != ""
