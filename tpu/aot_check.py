"""Compile learner and sampler for TPU topologies ahead of time, without a TPU.

    make tpu-check
    python tpu/aot_check.py --topology v5e:4x4 --model qwen3_1_7b \
      --program learner-lora --mesh fsdp=16

Needs `jax[tpu]` and this package (`make tpu-check` makes .venv-tpu for it). It
compiles the very update of `learner.learner.Learner` and the very functions of
`sampler.programs`, from shapes alone, and prints for each: the bytes that one
chip holds (arguments, of which donated ones are written in place; temporaries;
both with the outputs), beside the memory of the chip, the collectives in the
program by kind, and whether it fits. A collective inside a loop is counted
once. Nothing is run, so nothing is said about speed.

Without options it checks the settings of `DEFAULTS`, one of which must not fit.
It ends with status 1 if a program that should fit does not, if the one that
should not does, or if a program is refused for any other reason.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import aot_programs
from aot_programs import Setting

GIB = 2**30
# Bytes of high-bandwidth memory a chip, from cloud.google.com/tpu/docs/v5e,
# /v5p and /v6e ("HBM capacity per chip": 16, 95 and 32 GB).
HBM = {"v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
TOPOLOGIES = ("v5e:4x4", "v5p:2x2x4", "v6e:4x4")
MODELS = ("qwen3_1_7b", "qwen3_4b")
COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


class Found(NamedTuple):
  """What a compiled program needs of one chip, in bytes.

  `total` is the compiler's own figure where it refused for want of memory.
  """

  arguments: int
  temporaries: int
  total: int
  collectives: dict[str, int]
  kernels: int
  seconds: float
  refused: str = ""


def defaults() -> Iterator[Setting]:
  """Both presets on three topologies of 16 chips, and one too large."""
  for topology in TOPOLOGIES:
    for model in MODELS:
      for program in aot_programs.PROGRAMS:
        sampler = program in ("prefill", "decode")
        yield Setting(
          topology, model, program,
          fsdp=1 if sampler else 16, tensor=4 if sampler else 1,
          rows=64 if sampler else 16,
        )  # fmt: skip
  # Parameters, their gradients and Adam's moments on four chips of 16 GB.
  yield Setting("v5e:2x2", "qwen3_4b", "learner-full", fsdp=4, fits=False)


def collectives(text: str) -> dict[str, int]:
  """Counts the collectives of a compiled program's text, by kind.

  An asynchronous pair of -start and -done is one.
  """
  found = {}
  for kind in COLLECTIVES:
    count = len(re.findall(rf"[\s)}}]{kind}(?:-start)?\(", text))
    if count:
      found[kind] = count
  return found


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_REFUSALS = (
  r"[Uu]sed ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
  r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM",
)


def used(message: str) -> int:
  """Bytes that a program would need, from the compiler's refusal; 0 unknown."""
  for pattern in _REFUSALS:
    if found := re.search(pattern, message):
      return int(float(found[1]) * _UNITS[found[2]])
  return 0


def check(setting: Setting, devices: Sequence[Any]) -> Found:
  """Compiles one program for devices that need not be there.

  Raises:
    ValueError: the mesh does not fit the devices, or the rows the mesh.
  """
  import jax

  from steppo_jax.models import mesh as mesh_lib

  data = setting.data or len(devices) // (setting.fsdp * setting.tensor)
  mesh = mesh_lib.make_model_mesh(
    data=data, fsdp=setting.fsdp, tensor=setting.tensor, devices=devices
  )
  lower = aot_programs.lower_sampler
  if setting.program.startswith("learner"):
    lower = aot_programs.lower_learner
  started = time.perf_counter()
  # What a program is made of depends on where it is going to run.
  here, platform = jax.default_backend, devices[0].platform
  jax.default_backend = lambda: platform
  try:
    lowered = lower(setting, mesh)
  finally:
    jax.default_backend = here
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    seconds = time.perf_counter() - started
    return Found(0, 0, used(str(error)), {}, 0, seconds, str(error))
  text, memory = compiled.as_text(), compiled.memory_analysis()
  held = memory.argument_size_in_bytes
  temporaries = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Found(
    held, temporaries, held + temporaries + new, collectives(text),
    text.count("tpu_custom_call"), time.perf_counter() - started,
  )  # fmt: skip


def fits(found: Found, hbm: int) -> bool:
  """Was it compiled, and is there memory for it?"""
  return not found.refused and found.total <= hbm


def line(setting: Setting, found: Found, hbm: int) -> str:
  """A row of the table."""
  gib = lambda x: f"{x / GIB:6.2f}" if x else "     -"
  kinds = ", ".join(f"{n} {kind}" for kind, n in found.collectives.items())
  name = setting.model
  if setting.layers:
    name += f" ({setting.layers} layers)"
  split = f"fsdp {setting.fsdp} tensor {setting.tensor}"
  return " | ".join(
    [
      f"{setting.topology:9}", f"{name:11}", f"{setting.program:12}",
      f"{split:16}", f"{setting.rows:3} x {setting.row_length}",
      gib(found.arguments), gib(found.temporaries), gib(found.total),
      f"{hbm / GIB:3.0f}",
      "fits" if fits(found, hbm) else "DOES NOT FIT",
      kinds or "-", f"{found.kernels}", f"{found.seconds:.0f}",
    ]
  )  # fmt: skip


HEADER = (
  "topology | model | program | mesh | rows x tokens | arguments, GiB a chip | "
  "temporaries | total | of | verdict | collectives | kernels | compile, s"
)


def devices_of(topology: str) -> Sequence[Any]:
  """Devices of a topology that libtpu knows; none of them is there."""
  from jax.experimental import topologies

  found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
  return list(found.devices)


def settings(args: argparse.Namespace) -> list[Setting]:
  """What the options ask for; the defaults without any."""
  if not (args.topology or args.model or args.program):
    return [
      dataclasses.replace(s, layers=args.layers) for s in defaults()
      if s.fits or not args.layers
    ]  # fmt: skip
  axes = dict(pair.split("=") for pair in args.mesh.split(",") if pair)
  unknown = set(axes) - {"data", "fsdp", "tensor"}
  if unknown:
    raise SystemExit(f"--mesh: unknown axes {', '.join(sorted(unknown))}")
  return [
    Setting(
      topology, model, program, row_length=args.row_length, rows=args.rows,
      remat=args.remat, layers=args.layers, fits=not args.too_large,
      **{k: int(v) for k, v in axes.items()},
    )
    for topology in args.topology or TOPOLOGIES
    for model in args.model or MODELS
    for program in args.program or aot_programs.PROGRAMS
  ]  # fmt: skip


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--topology", action="append", help="such as v5e:4x4; repeatable")
  add("--model", action="append", help="preset; repeatable")
  add(
    "--program",
    action="append",
    choices=aot_programs.PROGRAMS,
    help="repeatable",
  )
  add("--mesh", default="", help="such as fsdp=8,tensor=2; data is the rest")
  add("--rows", type=int, default=16, help="rows or slots at once, in all")
  add("--row-length", type=int, default=4096)
  add("--remat", default="full", choices=("none", "dots", "full"))
  add("--layers", type=int, default=0, help="in place of the preset's")
  add("--too-large", action="store_true", help="it is meant not to fit")
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
  wanted = settings(parse(argv))
  os.environ["JAX_PLATFORMS"] = "cpu"
  # The compiler asks for the machine it runs on and waits for an answer.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_WORKER_ID", "0")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  print(HEADER, flush=True)
  wrong = 0
  for setting in wanted:
    hbm = HBM[setting.topology.split(":")[0]]
    found = check(setting, devices_of(setting.topology))
    print(line(setting, found, hbm), flush=True)
    if fits(found, hbm) != setting.fits:
      wrong += 1
      print(f"  expected: {'fits' if setting.fits else 'does not fit'}")
    if found.refused:
      print("  " + found.refused.split("\n", 1)[0][:200])
  print(f"{len(wanted)} programs, {wrong} not as expected")
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
