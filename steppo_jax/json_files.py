"""JSON objects in files."""

import json
import pathlib
from typing import Any


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """The object that a file holds.

  Raises:
    ValueError: it is not JSON, or no object; the file is named.
  """
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not JSON ({error})") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path} holds no JSON object")
  return found
