"""Step-level reinforcement learning of language-model agents in JAX."""

import importlib

__version__ = "0.1.0"

# Public name -> module. Modules load on first use, so that importing the
# package costs nothing and an environment process never loads JAX.
_PUBLIC = {}


def __getattr__(name):
  if name not in _PUBLIC:
    raise AttributeError(f"module 'steppo_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(f"steppo_jax.{_PUBLIC[name]}"), name)


def __dir__():
  return sorted([*globals(), *_PUBLIC])
