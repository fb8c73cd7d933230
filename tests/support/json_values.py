"""JSON that a schema describes, and JSON that is nearly that."""

import json

from hypothesis import strategies as st

# Also what no JSON is, by the letter: Python's writer spells it.
SCALARS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.just(10**30)
  | st.floats()
  | st.text(max_size=8)
  | st.sampled_from(["\ud800", "\x00", "<|im_end|>", "-1", "é" * 50])
)
ANY = st.recursive(
  SCALARS,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=6,
)


def nested(depth):
  """The JSON text of objects in each other."""
  return '{"a":' * depth + "1" + "}" * depth


# Strings that hold JSON are read by whoever is sent arguments of calls.
DEEP = st.sampled_from([nested(n) for n in (3, 150, 700, 5000)])


def of(schema, defs):
  """Values of a JSON schema.

  Args:
    schema: The schema.
    defs: Those that it refers to, by name.
  """
  if "$ref" in schema:
    return st.deferred(
      lambda: of(defs[schema["$ref"].rpartition("/")[2]], defs)
    )
  for several in ("anyOf", "oneOf"):
    if several in schema:
      return st.one_of(*(of(one, defs) for one in schema[several]))
  if "const" in schema:
    return st.just(schema["const"])
  if "enum" in schema:
    return st.sampled_from(schema["enum"])
  made = {
    "object": _object, "array": _array, "string": _string, "integer": _integer,
    "number": _number, "boolean": lambda *_: st.booleans(),
    "null": lambda *_: st.none(),
  }  # fmt: skip
  if "type" not in schema:
    return ANY
  return made[schema["type"]](schema, defs)


def _object(schema, defs):
  fields = {
    name: of(one, defs) for name, one in schema.get("properties", {}).items()
  }
  if not fields:
    more = schema.get("additionalProperties")
    inner = of(more, defs) if isinstance(more, dict) else ANY
    most = min(schema.get("maxProperties", 3), 3)
    return st.dictionaries(
      st.text(min_size=1, max_size=5), inner, max_size=most
    )
  needed = {n: s for n, s in fields.items() if n in schema.get("required", ())}
  rest = {n: s for n, s in fields.items() if n not in needed}
  return st.fixed_dictionaries(needed, optional=rest)


def _array(schema, defs):
  least = schema.get("minItems", 0)
  return st.lists(
    of(schema.get("items", {}), defs), min_size=least, max_size=least + 3
  )


def _string(schema, _):
  if "pattern" in schema:
    return st.from_regex(schema["pattern"], fullmatch=True)
  least = schema.get("minLength", 0)
  plain = st.text(
    st.characters(codec="utf-8"), min_size=least,
    max_size=min(schema.get("maxLength", 9), least + 9),
  )  # fmt: skip
  return plain if "maxLength" in schema else plain | DEEP


def _integer(schema, _):
  low = schema.get("minimum", -(2**70))
  high = schema.get("maximum", schema.get("exclusiveMaximum", 2**70 + 1) - 1)
  # Most numbers small: an answer of so many tokens takes its time.
  return st.integers(max(low, min(low, 0)), min(high, max(low, 0) + 40)) | (
    st.integers(low, high)
  )


def _number(schema, _):
  return st.floats(
    schema.get("minimum"), schema.get("maximum"), allow_nan=False,
    allow_infinity=False,
  )  # fmt: skip


@st.composite
def nearly(draw, values):
  """A value of which one part is replaced by anything, or is left out."""
  value = draw(values)
  if isinstance(value, dict) and value:
    key = draw(st.sampled_from(sorted(value)))
    if draw(st.booleans()):
      return {**value, key: draw(nearly(st.just(value[key])))}
    if draw(st.booleans()):
      return {k: v for k, v in value.items() if k != key}
  if isinstance(value, list) and value and draw(st.booleans()):
    at = draw(st.integers(0, len(value) - 1))
    return [*value[:at], draw(nearly(st.just(value[at]))), *value[at + 1 :]]
  return draw(ANY)


def text(value):
  """As it is sent."""
  return json.dumps(value).encode()
