"""Trajectories to rows of tokens and a table of steps."""

import importlib

# Public name -> module; options and checks load no JAX, `rows` does.
_PUBLIC = {
  "PackingConfig": "options",
  "Packed": "rows",
  "pack": "rows",
  "validate": "checks",
}


def __getattr__(name):
  if name not in _PUBLIC:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
