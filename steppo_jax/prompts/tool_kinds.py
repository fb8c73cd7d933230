"""The types that the schemas of tools give to arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

# The types that each argument may have, by tool and key; None where not known.
# With "number" there is always "integer".
Kinds = Mapping[str, Mapping[str, frozenset[str] | None]]

STRING = frozenset({"string"})
_NUMBER = frozenset({"number", "integer"})
# Names of JSON Schema, and what those who write schemas by hand call them.
_NAMED = {
  **dict.fromkeys(("string", "str", "text", "char"), STRING),
  **dict.fromkeys(
    ("integer", "int", "int32", "int64", "long"), frozenset({"integer"})
  ),
  **dict.fromkeys(("number", "float", "float32", "float64", "double"), _NUMBER),
  **dict.fromkeys(("boolean", "bool"), frozenset({"boolean"})),
  **dict.fromkeys(("object", "dict", "map"), frozenset({"object"})),
  **dict.fromkeys(("array", "list", "tuple"), frozenset({"array"})),
  **dict.fromkeys(("null", "none", "nonetype"), frozenset({"null"})),
}
_PYTHON = {
  bool: "boolean", int: "integer", float: "number", str: "string",
  dict: "object", list: "array",
}  # fmt: skip
# Deeper than any schema, and shallow enough for Python's stack.
_DEEPEST = 32


def kinds_of(tools: Sequence[Mapping[str, Any]] | None) -> Kinds:
  """The types of arguments, of schemas as chat templates take them.

  Never raises on what is in a schema. Of an argument whose schema cannot be
  read nothing is known, and a tool without a name is passed over.

  Args:
    tools: Objects with `name` and `parameters`, a JSON schema, or with such an
      object as `function`.
  """
  found = {}
  for tool in tools or ():
    if not isinstance(tool, Mapping):
      continue
    inner = tool.get("function")
    tool = inner if isinstance(inner, Mapping) else tool
    if not isinstance(name := tool.get("name"), str):
      continue
    schema = _Schema(tool.get("parameters"))
    found[name] = {
      key: schema.kinds(one) for key, one in schema.properties().items()
    }
  return found


def kind_of(value: Any) -> str:
  """The type of a value as JSON Schema names it."""
  return _PYTHON.get(type(value), "null")


class _Schema:
  """One tool's parameters, whose parts may refer to each other."""

  def __init__(self, root):
    self._root = root
    # None also while a reference is followed that leads back to itself.
    self._kinds_at: dict[str, frozenset[str] | None] = {}

  def properties(self) -> Mapping[str, Any]:
    seen, schema = set(), self._root
    while isinstance(schema, Mapping) and "properties" not in schema:
      reference = schema.get("$ref")
      if not isinstance(reference, str) or reference in seen:
        break
      seen.add(reference)
      schema = self._at(reference)
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    return found if isinstance(found, Mapping) else {}

  def kinds(self, schema, depth: int = 0) -> frozenset[str] | None:
    """What the type says, or else what all the other words allow."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
      return None
    told = _named(schema.get("type"))
    if told is not None:
      return told
    parts = [self._referred(schema.get("$ref"), depth)]
    if "const" in schema:
      parts.append(_values([schema["const"]]))
    parts.append(_values(schema.get("enum")))
    parts += [self.kinds(one, depth + 1) for one in _list(schema.get("allOf"))]
    for word in ("anyOf", "oneOf"):
      choices = _list(schema.get(word))
      parts.append(_any([self.kinds(one, depth + 1) for one in choices]))
    told = None
    for part in parts:
      # Parts that contradict each other allow no value: the first is kept.
      told = part if told is None else (told & (part or told)) or told
    return told

  def _referred(self, reference, depth):
    if not isinstance(reference, str):
      return None
    if reference not in self._kinds_at:
      self._kinds_at[reference] = None
      self._kinds_at[reference] = self.kinds(self._at(reference), depth + 1)
    return self._kinds_at[reference]

  def _at(self, reference: str):
    """What stands at a place such as "#/$defs/X"; None without such a place."""
    first, *keys = reference.split("/")
    found = self._root if first == "#" else None
    for key in keys:
      key = key.replace("~1", "/").replace("~0", "~")
      found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _list(value) -> list:
  return value if isinstance(value, list) else []


def _any(parts) -> frozenset[str] | None:
  return None if not parts or None in parts else frozenset().union(*parts)


def _named(names) -> frozenset[str] | None:
  """What one name or a list of them says; None if one is no type's."""
  names = [names] if isinstance(names, str) else _list(names)
  known = lambda one: isinstance(one, str) and _NAMED.get(one.strip().lower())
  return _any([known(one) or None for one in names])


def _values(values) -> frozenset[str] | None:
  found = frozenset(map(kind_of, _list(values)))
  return (found | _NUMBER if "number" in found else found) or None
