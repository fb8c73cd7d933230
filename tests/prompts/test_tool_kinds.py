"""Types of arguments by the schemas of tools, whatever is in the schemas."""

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.prompts import tool_dialects, tool_kinds

NUMBER = {"number", "integer"}


def kinds(schema, **parameters):
  tool = {
    "name": "f",
    "parameters": {"properties": {"k": schema}, **parameters},
  }
  found = tool_kinds.kinds_of([tool])["f"]["k"]
  return found if found is None else set(found)


@pytest.mark.parametrize(
  ("schema", "expected"),
  [
    *(({"type": name}, {"string"}) for name in ("string", "str", "STRING")),
    *(({"type": name}, {"integer"}) for name in ("integer", "int", " Int ")),
    *(({"type": name}, NUMBER) for name in ("number", "float", "double")),
    *(({"type": name}, {"boolean"}) for name in ("boolean", "bool")),
    *(({"type": name}, {"object"}) for name in ("object", "dict")),
    *(({"type": name}, {"array"}) for name in ("array", "list")),
    ({"type": ["string", "null"]}, {"string", "null"}),
    ({"type": "integer", "enum": ["1", "2"]}, {"integer"}),
    ({"type": None, "enum": ["1", "2"]}, {"string"}),
    ({"const": "5"}, {"string"}),
    ({"const": 2.5}, NUMBER),
    ({"enum": ["1", 2, None]}, {"string", "integer", "null"}),
    ({"anyOf": [{"type": "int"}, {"type": "null"}]}, {"integer", "null"}),
    ({"oneOf": [{"type": "str"}, {"const": 1}]}, {"string", "integer"}),
    ({"allOf": [{"type": "string"}]}, {"string"}),
    ({"allOf": [{"minimum": 1}, {"type": "number"}, {"type": "integer"}]},
     {"integer"}),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, {"string"}),
    *(
      (schema, None)
      for schema in (
        True, False, None, "string", ["string"], {}, {"type": None},
        {"type": {}}, {"type": "any"}, {"type": ["string", ["x"]]},
        {"type": []}, {"anyOf": None}, {"anyOf": [True, {"type": "string"}]},
        {"anyOf": {"type": "string"}}, {"enum": None}, {"enum": "ab"},
        {"allOf": 3}, {"oneOf": []}, {"$ref": 3}, {"$ref": "#/$defs/None"},
        {"$ref": "other.json#/$defs/X"}, {"$ref": ""},
      )
    ),
  ],
)  # fmt: skip
def test_the_words_of_a_schema(schema, expected):
  assert kinds(schema) == expected


@pytest.mark.parametrize("place", ["$defs", "definitions"])
def test_a_reference_is_followed_in_its_own_schema(place):
  word = {"type": "string", "enum": ["1", "2"]}
  defs = {"X": word, "a/b~c": word, "Y": {"$ref": f"#/{place}/X"}}
  for name in ("X", "a~1b~0c", "Y"):
    assert kinds({"$ref": f"#/{place}/{name}"}, **{place: defs}) == {"string"}
  inner = {"anyOf": [{"$ref": f"#/{place}/X"}, {"type": "null"}]}
  assert kinds(inner, **{place: defs}) == {"string", "null"}
  whole = {
    "$ref": f"#/{place}/T", place: {"T": {"properties": {"k": word}}}
  }  # fmt: skip
  tool = {"function": {"name": "f", "parameters": whole}}
  assert tool_kinds.kinds_of([tool]) == {"f": {"k": tool_kinds.STRING}}


def test_references_that_lead_back_end():
  loops = {
    "Self": {"$ref": "#/$defs/Self"},
    "A": {"anyOf": [{"$ref": "#/$defs/B"}, {"$ref": "#/$defs/B"}]},
    "B": {"allOf": [{"$ref": "#/$defs/A"}, {"type": "array"}]},
  }
  # Each doubles what the next would cost if it were read twice.
  wide = {
    f"W{i}": {"anyOf": [{"$ref": f"#/$defs/W{i + 1}"}] * 2} for i in range(99)
  }
  assert kinds({"$ref": "#/$defs/Self"}, **{"$defs": loops}) is None
  assert kinds({"$ref": "#/$defs/B"}, **{"$defs": loops}) == {"array"}
  assert kinds({"$ref": "#/$defs/W0"}, **{"$defs": wide}) is None
  deep = {"type": "string"}
  for _ in range(5_000):
    deep = {"anyOf": [deep]}
  assert kinds(deep) is None
  again = {"name": "f", "parameters": {"$ref": "#"}}
  assert tool_kinds.kinds_of([again]) == {"f": {}}


WORDS = (
  "type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref", "properties",
  "parameters", "function", "name", "string", "#/properties/string", "#",
)  # fmt: skip


def anything():
  leaves = st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS)
  return st.recursive(
    leaves,
    lambda x: (
      st.lists(x, max_size=3)
      | st.dictionaries(st.sampled_from(WORDS), x, max_size=4)
    ),
    max_leaves=12,
  )


@hypothesis.settings(max_examples=60)
@hypothesis.given(schema=anything(), tool=anything())
@hypothesis.example({"anyOf": [{"type": "string"}, {"type": None}]}, {})
@hypothesis.example(True, {"type": "function"})
@hypothesis.example(None, {"name": "f", "parameters": "{}"})
@hypothesis.example(None, {"name": "f", "parameters": {"properties": ["a"]}})
@hypothesis.example(None, {"name": "f", "function": None})
def test_no_schema_raises(schema, tool):
  known = {"name": "f", "parameters": {"properties": {"string": schema}}}
  text = tool_dialects.spell("f", {"string": "x"}, "qwen3_coder", tools=[known])
  for tools in ([tool], [known, tool], [{"function": known}]):
    for dialect in ("hermes", "glm", "qwen3_coder", "pythonic"):
      tool_dialects.parse("hello", dialect, tools=tools)
    (call,) = tool_dialects.parse(text, "qwen3_coder", tools=tools)
    assert call.name == "f"


@pytest.mark.parametrize(
  ("schema", "text", "value"),
  [
    ({"type": "int"}, "5", 5),
    ({"type": "float"}, "2.5", 2.5),
    ({"type": "float"}, "2", 2),
    ({"type": "bool"}, "true", True),
    ({"type": "list"}, "[1]", [1]),
    ({"type": "dict"}, '{"a": 1}', {"a": 1}),
    ({"type": "str"}, "7", "7"),
    ({"allOf": [{"type": "string"}]}, "7", "7"),
    ({"$ref": "#/$defs/E"}, "1", "1"),
    ({"const": "5"}, "5", "5"),
    ({"type": "any"}, "5", 5),
  ],
)
def test_values_without_quotes_have_the_types_of_any_schema(
  schema, text, value
):
  parameters = {
    "properties": {"k": schema},
    "$defs": {"E": {"type": "string", "enum": ["1", "2"]}},
  }
  tools = [{"name": "f", "parameters": parameters}]
  coder = f"<tool_call><function=f><parameter=k>{text}</parameter></function>"
  glm = f"<tool_call>f<arg_key>k</arg_key><arg_value>{text}</arg_value>"
  for dialect, call in (("qwen3_coder", coder), ("glm", f"{glm}</tool_call>")):
    (found,) = tool_dialects.parse(call, dialect, tools=tools)
    assert found.arguments == {"k": value}
    assert type(found.arguments["k"]) is type(value)
