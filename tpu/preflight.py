"""Check one host, or all hosts of a slice, before a run burns chips on it.

    python tpu/preflight.py --storage FOLDER [--devices N] [--platform tpu]
      [--distributed | --coordinator HOST:PORT --processes N --process I]

Prints a line for each check and ends with status 1 if one fails:

    devices   as many as expected, of the platform that is expected
    psum      one sum over all devices of all processes gives their number
    memory    free bytes of each device of this process, at least --free-gib
    storage   a file is written, synced, renamed and read back in FOLDER, and
              nothing is left there
    clock     hosts agree on the time, and the storage with them, to --skew s

It runs on any device, CPU included, where memory is not reported and passes.
FOLDER is a folder of a file system; a bucket must be mounted. With
`--distributed` JAX finds the other processes by itself, as on TPU VMs and GKE.
"""

import argparse
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Sequence

GIB = 2**30


class Failed(Exception):
  """A check that did not pass; says why."""


def devices(args: argparse.Namespace) -> str:
  import jax

  found = jax.devices()
  kinds = ", ".join(sorted({d.device_kind for d in found}))
  text = f"{len(found)} of {kinds}, {jax.local_device_count()} here"
  if args.devices and len(found) != args.devices:
    raise Failed(f"{text}; expected {args.devices}")
  if args.platform and found[0].platform != args.platform:
    raise Failed(
      f"{text}: platform {found[0].platform}, expected {args.platform}"
    )
  return text


def psum(args: argparse.Namespace) -> str:
  import jax
  import jax.numpy as jnp
  from jax.sharding import AxisType, NamedSharding, PartitionSpec

  del args
  count = len(jax.devices())
  mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))
  split = PartitionSpec("all")
  started = time.perf_counter()
  ones = jax.make_array_from_callback(
    (count,), NamedSharding(mesh, split), lambda index: jnp.ones(1)
  )
  add = jax.shard_map(
    lambda x: jax.lax.psum(x, "all"),
    mesh=mesh,
    in_specs=split,
    out_specs=PartitionSpec(),
  )
  total = float(jax.jit(add)(ones).addressable_data(0)[0])
  if total != count:
    raise Failed(f"{total} over {count} devices")
  return f"{count} devices in {time.perf_counter() - started:.1f} s"


def memory(args: argparse.Namespace) -> str:
  import jax

  lines = []
  for device in jax.local_devices():
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
      return f"not reported by {device.platform}"
    free = (stats["bytes_limit"] - stats["bytes_in_use"]) / GIB
    lines.append(f"{free:.1f}")
    if free < args.free_gib:
      raise Failed(
        f"device {device.id} has {free:.1f} GiB free, less than "
        f"{args.free_gib}: does another process hold it?"
      )
  return f"{', '.join(lines)} GiB free"


def storage(args: argparse.Namespace) -> str:
  folder = pathlib.Path(args.storage)
  name = folder / f".preflight-{uuid.uuid4().hex}"
  written = name.with_suffix(".tmp")
  text = os.urandom(2**20)
  started = time.perf_counter()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with open(written, "wb") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    written.rename(name)
    same = name.read_bytes() == text
  except OSError as error:
    raise Failed(f"{folder}: {error}") from error
  finally:
    for path in (written, name):
      _remove(path)
  if not same:
    raise Failed(f"{folder}: what was read is not what was written")
  seconds = time.perf_counter() - started
  return f"1 MiB written, renamed and read in {1e3 * seconds:.0f} ms"


def clock(args: argparse.Namespace) -> str:
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  # Processes come here at different times, and leave together.
  multihost_utils.sync_global_devices("clock")
  # Whole seconds and the rest, as devices hold 32 bits.
  now = time.time()
  parts = np.array([now // 1, now % 1], np.float64)
  parts = np.array([int(parts[0]) % 2**20, parts[1]], np.float32)
  times = np.asarray(multihost_utils.process_allgather(parts)).reshape(-1, 2)
  times = times.astype(np.float64).sum(-1)
  spread = float(times.max() - times.min())
  text = f"{jax.process_count()} processes within {spread:.1f} s"
  if spread > args.skew:
    raise Failed(f"{text}, more than {args.skew}")
  behind = _storage_skew(pathlib.Path(args.storage))
  if behind is None:
    return text + ", storage not asked"
  if abs(behind) > args.skew:
    raise Failed(f"storage is {behind:.1f} s off, more than {args.skew}")
  return text + f", storage {abs(behind):.1f} s off"


def _storage_skew(folder: pathlib.Path) -> float | None:
  """Seconds by which the storage's clock differs; None if not writable."""
  name = folder / f".preflight-{uuid.uuid4().hex}"
  try:
    name.touch()
    return name.stat().st_mtime - time.time()
  except OSError:
    return None
  finally:
    _remove(name)


def _remove(path: pathlib.Path) -> None:
  try:
    path.unlink(missing_ok=True)
  except OSError as error:
    print(f"note: {path} could not be removed: {error}", file=sys.stderr)


CHECKS: dict[str, Callable[[argparse.Namespace], str]] = {
  "devices": devices,
  "psum": psum,
  "memory": memory,
  "storage": storage,
  "clock": clock,
}


def connect(args: argparse.Namespace) -> None:
  """Joins the other processes, if there are any."""
  import jax

  if args.coordinator:
    jax.distributed.initialize(args.coordinator, args.processes, args.process)
  elif args.distributed:
    jax.distributed.initialize()


def parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--storage", required=True, help="folder that checkpoints will go to")
  add("--devices", type=int, default=0, help="expected in all; 0 for any")
  add("--platform", default="", help="tpu, gpu or cpu; any without")
  add("--free-gib", type=float, default=1.0)
  add("--skew", type=float, default=5.0, help="seconds")
  add("--distributed", action="store_true")
  add("--coordinator", default="")
  add("--processes", type=int, default=1)
  add("--process", type=int, default=0)
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
  args = parse(argv)
  connect(args)
  wrong = 0
  for name, check in CHECKS.items():
    try:
      line = f"ok      {name:8} {check(args)}"
    except Failed as error:
      wrong += 1
      line = f"FAILED  {name:8} {error}"
    print(line, flush=True)
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
