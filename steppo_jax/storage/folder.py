"""The folder of a run: what ran, where, and whether it may go on."""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from steppo_jax import files
from steppo_jax.processes import hosts as hosts_lib
from steppo_jax.storage import events, lease

CONFIG_NAME = "config.json"
FACTS_NAME = "run.json"
# Of runs that train adapters: what PEFT reads.
ADAPTER_NAME = "adapter"
POLICY_NAME = "policy.safetensors"
CHECKPOINTS_NAME = "checkpoints"
JOURNALS_NAME = "journal"
# Of runs whose episodes agents play.
POOL_NAME = "pool.sqlite"

# Begins the name of a file that tells whether all processes see one folder, and
# how many seconds it may take until they do.
_SHARED_NAME = ".shared-"
_SHARED_S = 20.0

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def open_folder(config: Any, default_name: str, command: str) -> pathlib.Path:
  """Makes the folder of a run, or checks that the one there is this run's.

  Args:
    config: The run's options; `run_dir` names the folder.
    default_name: Folder under `runs/` when `run_dir` is None.
    command: What the user typed, for the record.

  Raises:
    ValueError: the folder belongs to a run with other options.
  """
  path = path_of(config, default_name)
  if path.exists() and not path.is_dir():
    raise ValueError(f"run_dir={path} is a file")
  options = options_of(config)
  file = path / CONFIG_NAME
  if file.is_file():
    # What a run of an older version could not say was as it is by default.
    saved = flat(_defaults(config)) | flat(json.loads(file.read_text()))
    _check_same(path, saved, flat(options))
    return path
  if path.is_dir() and any(path.iterdir()):
    raise ValueError(
      f"{path} holds files of something else: choose another run_dir"
    )
  path.mkdir(parents=True, exist_ok=True)
  facts = {
    "command": command,
    "date": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
    "commit": commit(),
    "hardware": hardware(),
    "versions": {name: metadata.version(name) for name in _PACKAGES}
    | {"python": platform.python_version()},
  }
  _write(path / FACTS_NAME, facts)
  _write(file, options)  # last: its presence says that the folder is whole
  return path


def path_of(config: Any, default_name: str) -> pathlib.Path:
  """Where a run's folder is, or will be; arguments as in `open_folder`."""
  return pathlib.Path(config.run_dir or f"runs/{default_name}")


def check_shared(path: pathlib.Path, hosts: hosts_lib.Hosts) -> None:
  """Checks that all processes of a run see the folder that the first one made.

  Each writes its part of a checkpoint there. In folders of their own, which
  have the same name on disks of several machines or in several working
  directories, no checkpoint would be whole, and that would be seen only when
  the run is to go on.

  Args:
    path: The folder, which the first process has opened.
    hosts: The processes of the run; all call this together.

  Raises:
    ValueError: one of them does not see it; raised in all.
  """
  if hosts.count == 1:
    return
  made = path / f"{_SHARED_NAME}{os.urandom(8).hex()}"
  hosts.first("the run folder's mark", made.touch)
  name = hosts.gather_json("the run folder's name", made.name)[0]
  found = hosts.gather_json(
    "who sees the run folder", (_comes(path / name), str(path.resolve()))
  )
  if hosts.is_first:
    made.unlink(missing_ok=True)
  for index, (sees, where) in enumerate(found):
    if not sees:
      raise ValueError(
        f"run_dir={path}: process {index} does not see in {where} what "
        f"process 0 wrote in {found[0][1]}; several processes need one folder "
        "that all see, such as a mounted bucket or disk"
      )


def _comes(path: pathlib.Path) -> bool:
  """Whether a file is there, or soon: shared storage may take a moment."""
  deadline = time.monotonic() + _SHARED_S
  while not path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.2)
  return True


@contextlib.contextmanager
def removed_if_refused(path: pathlib.Path, is_first: bool) -> Iterator[None]:
  """Takes the folder away again if the run is refused before it began.

  The corrected command would else find the options of the wrong one there. What
  holds a metric, a checkpoint or anything else is never taken away.

  Args:
    path: The folder, from `open_folder`.
    is_first: Is this the process that made it?

  Raises:
    ValueError: what was raised inside.
  """
  try:
    yield
  except ValueError:
    names = {entry.name for entry in path.iterdir()} if is_first else {None}
    # A process that was killed here has left its mark.
    names = {x for x in names if not (x or "").startswith(_SHARED_NAME)}
    if names <= {CONFIG_NAME, FACTS_NAME, lease.NAME, events.FILE_NAME}:
      shutil.rmtree(path)
    raise


def options_of(config: Any) -> dict[str, Any]:
  """Options as JSON gives them back."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def _write(path: pathlib.Path, value: Any) -> None:
  files.replace(path, json.dumps(value, indent=2) + "\n")


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Options by their whole names, such as "learner.learning_rate"."""
  found = {}
  for name, value in options.items():
    if isinstance(value, dict):
      found |= flat(value, f"{prefix}{name}.")
    else:
      found[prefix + name] = value
  return found


def _defaults(config: Any) -> dict[str, Any]:
  """Default of every option that has one, as `options_of` writes it."""
  found = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      found[field.name] = _defaults(value)
    elif field.default is not dataclasses.MISSING:
      found[field.name] = field.default
  return json.loads(json.dumps(found))


# What may differ when a run goes on: where it is, where its servers are, and
# what is computed again, as there may be less memory than there was.
_FREE = ("run_dir", "engines.addresses", "learner.remat")


def _check_same(path, saved, wanted) -> None:
  names = sorted(saved.keys() | wanted.keys())
  changed = [
    f"{n}={saved.get(n)} there, {wanted.get(n)} now"
    for n in names
    if saved.get(n) != wanted.get(n) and n not in _FREE
  ]
  if changed:
    raise ValueError(
      f"{path} holds a run with other options ({'; '.join(changed[:5])}): "
      "choose another run_dir, or remove that folder"
    )


def commit() -> str:
  """The commit of this checkout, with a "+" if tracked files differ."""
  folder = pathlib.Path(__file__).parent
  try:
    out = [
      subprocess.run(
        ["git", "-C", str(folder), *args],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
      ).stdout.strip()
      for args in (
        ["rev-parse", "--short=12", "HEAD"],
        ["status", "-s", "-uno"],
      )
    ]
  except (OSError, subprocess.SubprocessError):
    return "unknown"
  return out[0] + ("+" if out[1] else "")


def hardware() -> str:
  """Processor, cores and memory of this machine."""
  name = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.is_file():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        name = line.partition(":")[2].strip()
        break
  return f"{name}, {os.cpu_count()} cores"


def command_line() -> str:
  """What the user typed, without the path of the interpreter."""
  return " ".join(["python -m steppo_jax", *sys.argv[1:]])
