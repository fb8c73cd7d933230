"""Plays one episode with a Python callable, in a process of its own.

    python -m steppo_jax.rollout.entry package.module:function

The callable is given the task and the seed of its environment. It may return
nothing; a number, the reward of its last step; or the fields of the episode's
end, such as {"success": True}. It may print lines as any other agent does, and
may be a coroutine. What it raises is counted as any other failure.
"""

import asyncio
import importlib
import inspect
import json
import numbers
import os
import re
import sys

from steppo_jax import types


def parts(name: str) -> tuple[str, str]:
  """Module and function of a name.

  Raises:
    ValueError: it is none.
  """
  found = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)", name)
  if not found:
    raise ValueError(f"agents.entry={name!r} must be package.module:function")
  return found[1], found[2]


def main(name: str) -> None:
  """Plays the episode that variables and standard input tell."""
  module, path = parts(name)
  function = importlib.import_module(module)
  for attribute in path.split("."):
    function = getattr(function, attribute)
  # A long one is no variable.
  text = os.environ.get("STEPPO_TASK") or sys.stdin.read()
  task = types.task_from_json(json.loads(text))
  found = function(task, int(os.environ["STEPPO_SEED"]))
  if inspect.isawaitable(found):
    found = asyncio.run(_of(found))
  if found is None:
    return
  if isinstance(found, numbers.Real):
    found = {"reward": float(found)}
  print(json.dumps({"status": "ended"} | dict(found)), flush=True)


async def _of(awaitable):
  return await awaitable


if __name__ == "__main__":
  main(sys.argv[1])
