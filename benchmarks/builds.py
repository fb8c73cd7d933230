"""Two builds of this package in one measurement: this one and an earlier one.

A benchmark starts itself again as a worker of each build, by `Worker`, and asks
them in turn, so that what else the machine does falls on both.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Before the sampler had few programs.
EARLIER = "ffc004e"


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[pathlib.Path]:
  """The files of a commit in a folder that is removed afterwards."""
  git = ["git", "-C", str(ROOT), "worktree"]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "build"
    subprocess.run(
      [*git, "add", "--quiet", "--detach", str(path), commit], check=True
    )
    try:
      yield path
    finally:
      subprocess.run([*git, "remove", "--force", str(path)], check=True)


class Worker:
  """A process that does what it is asked with one build of the package."""

  def __init__(self, script: str, build: pathlib.Path, **environment: str):
    """Starts `script --worker` with the package of `build`.

    Args:
      script: Path of a benchmark whose worker calls `serve`.
      build: Folder that holds the package.
      **environment: Set for it besides.
    """
    env = os.environ | environment | {"PYTHONPATH": str(build)}
    self._process = subprocess.Popen(
      [sys.executable, script, "--worker"], cwd=build, env=env, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

  def ask(self, **question: Any) -> Any:
    """One question's answer.

    Raises:
      RuntimeError: the worker has ended; what it said is on standard error.
    """
    self._process.stdin.write(json.dumps(question) + "\n")
    self._process.stdin.flush()
    answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError(f"a worker ended while it was asked {question}")
    return json.loads(answer)

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()


def serve(answer: Any) -> None:
  """Answers questions until there are no more: `answer(**question)`."""
  for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)


def make_engine(name: str, layers: int, **shapes: Any) -> Any:
  """A `SlotEngine` of random weights, by the names of either build.

  Args:
    name: Preset.
    layers: In place of the preset's; 0 for the preset's.
    **shapes: slots, context, max_new_tokens, and lengths of prefill if any.
  """
  import dataclasses

  import jax

  from steppo_jax.models import presets, transformer
  from steppo_jax.sampler import engine as engine_lib

  if hasattr(engine_lib, "SamplerConfig"):
    config = engine_lib.SamplerConfig
  else:
    from steppo_jax.sampler.options import SamplerConfig as config
  model = presets.get(name, shapes.get("vocab", 512))
  if layers:
    model = dataclasses.replace(model, num_layers=layers)
  lengths = shapes.get("lengths")
  engine = engine_lib.SlotEngine(
    model,
    config(
      num_slots=shapes["slots"],
      **({"prefill_lengths": tuple(lengths)} if lengths else {}),
    ),
    context=shapes["context"], max_new_tokens=shapes["max_new_tokens"],
    end_of_turn_id=-1, seed=0,
  )  # fmt: skip
  make = jax.jit(lambda key: transformer.init(model, key))
  engine.set_params(make(jax.random.key(0)), 0)
  return engine
