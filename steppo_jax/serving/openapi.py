"""What the endpoints take, in the form of OpenAPI 3.1: `GET /openapi.json`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import json_schema
from starlette import routing


def of(
  routes: Iterable[routing.BaseRoute], bodies: Mapping[str, type]
) -> dict[str, Any]:
  """The description of a server.

  Args:
    routes: Its endpoints; those that are mounted are left out.
    bodies: What the endpoints of a path take as JSON.
  """
  names, schemas = json_schema.models_json_schema(
    [(form, "validation") for form in dict.fromkeys(bodies.values())],
    ref_template="#/components/schemas/{model}",
  )
  paths: dict[str, Any] = {}
  for one in routes:
    if not isinstance(one, routing.Route):
      continue
    path = one.path.replace(":path}", "}")
    for method in sorted(one.methods - {"HEAD"}):
      made: dict[str, Any] = {
        "parameters": [
          {"name": name, "in": "path", "required": True,
           "schema": {"type": "string"}}
          for name in re.findall(r"{(\w+)}", path)
        ],
        "responses": {"default": {"description": "an answer, or an error"}},
      }  # fmt: skip
      if method == "POST" and path in bodies:
        content = {"schema": names[bodies[path], "validation"]}
        made["requestBody"] = {
          "required": True, "content": {"application/json": content},
        }  # fmt: skip
      paths.setdefault(path, {})[method.lower()] = made
  return {
    "openapi": "3.1.0",
    "info": {"title": "steppo_jax serve policy", "version": "1"},
    "paths": paths,
    "components": {"schemas": schemas["$defs"]},
  }
