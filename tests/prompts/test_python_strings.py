"""Strings in calls that are spelt in Python have Python's escapes."""

import ast

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.prompts import loose_json, tool_dialects

ESCAPES = (
  "a", " ", "é", "[", "]", ",", "=", "#", "/", "8", r"\n", r"\t", r"\\", r"\'",
  r"\"", r"\/", r"\0", r"\08", r"\x41", r"\u00e9", r"\U0001F600", r"\N{BULLET}",
  r"\a", r"\v", r"\f", r"\b", r"\r", r"\101", r"\1012", r"\777", r"\z", r"\N",
  "\\\n", "\\\r\n",
)  # fmt: skip


def read(literal, dialect="pythonic"):
  calls = {
    "pythonic": f"[f(a={literal})]",
    "llama": f"<|python_tag|>f.call(a={literal})",
    "gemma": f"```tool_code\nf(a={literal})\n```",
  }
  (call,) = tool_dialects.parse(calls[dialect], dialect)
  assert call.name == "f", call.error
  return call.arguments["a"]


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@hypothesis.given(
  body=st.lists(st.sampled_from(ESCAPES), max_size=5).map("".join),
  quote=st.sampled_from(["'", '"', "'''", '"""']),
)
@hypothesis.example(r"\/", "'")
@hypothesis.example(r"\0\a\v\101\N{BULLET}", "'")
def test_escapes_are_those_of_python(body, quote):
  literal = f"{quote}{body}{quote}"
  try:
    right = ast.literal_eval(literal)
  except (SyntaxError, ValueError):
    hypothesis.reject()
  for dialect in ("pythonic", "llama", "gemma"):
    assert read(literal, dialect) == right


@hypothesis.given(text=st.text())
@hypothesis.example("\\/\0\a\v\x7f\x85\u2028'\"")
def test_what_python_spells_is_read_back(text):
  for literal in (repr(text), ascii(text), repr(f"'{text}"), repr(f'"{text}')):
    assert read(literal) == ast.literal_eval(literal)
  nested = {text: [text, {"k": text}]}
  assert read(repr(nested)) == nested


@hypothesis.given(text=st.text())
@hypothesis.example("\\/\0\a\v\x7f'\"\\N{BULLET}")
def test_what_our_own_writer_spells_is_python(text):
  for dialect in ("pythonic", "gemma"):
    spelt = tool_dialects.spell("f", {"a": text, "b": [text]}, dialect)
    assert tool_dialects.parse(spelt, dialect)[0].arguments["a"] == text
  spelt = tool_dialects.spell("f", {"a": text, "b": [text]}, "pythonic")
  (call,) = ast.parse(spelt, mode="eval").body.elts
  assert [ast.literal_eval(word.value) for word in call.keywords] == [
    text, [text]
  ]  # fmt: skip


def test_what_escapes_nothing_stays():
  for body in (r"\xg", r"\u12", r"\U00110000", r"\N{NO SUCH}", r"\N{", r"\q"):
    assert read(f"'{body}'") == body
  # The halves of a rare letter, as JSON spells it, are no text apart.
  assert read(r"'\ud83d\ude00'") == "\U0001f600"
  assert read(r"'\ud83d'") == "\ud83d"


def test_objects_keep_the_escapes_of_json():
  assert loose_json.read(r"'\/\0\a'") == (r"/\0\a", 8)
  text = """{'name': 'f', 'parameters': {'a': '\\/'}}"""
  for dialect in ("llama", "pythonic"):
    (call,) = tool_dialects.parse(text, dialect)
    assert call.arguments == {"a": "/"}
