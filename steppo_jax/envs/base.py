"""The environments by name. Each is imported when it is first made."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from steppo_jax import types


def _lazily(module: str, name: str) -> Callable[..., types.Env]:
  def make(**options: Any) -> types.Env:
    return getattr(importlib.import_module(module), name)(**options)

  return make


ENVS: dict[str, Callable[..., types.Env]] = {
  "household": _lazily("steppo_jax.envs.household", "HouseholdEnv"),
}


def make(name: str, **options: Any) -> types.Env:
  """A fresh environment.

  Args:
    name: A key of `ENVS`; the `env` of the tasks that it will play.
    **options: Arguments of the environment's class.

  Raises:
    ValueError: there is no such environment; the nearest name is told.
  """
  if name not in ENVS:
    near = difflib.get_close_matches(str(name), ENVS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"env must be one of {', '.join(sorted(ENVS))}, got {name!r}{hint}"
    )
  return ENVS[name](**options)
