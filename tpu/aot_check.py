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
once. Below a learner stands what the whole run holds (`whole_run.py`, for which
the program that hands weights over is compiled, too) with the slots of the
sampler that fit beside it, and the compiler's own estimate of
cycles, which leaves out kernels, scatters and all that is asynchronous: the
time is longer. To a sampler's is added what its attention kernel takes at the
chip's peak. Nothing is run. The last line is one JSON object.

Without options it checks the settings of `DEFAULTS`, one of which must not fit.
It ends with status 1 if a program that should fit does not, if the one that
should not does, or if a program is refused for any other reason.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import aot_programs
import hlo
import roofline
import whole_run
from aot_programs import Setting

GIB = 2**30
# Bytes of high-bandwidth memory a chip, from cloud.google.com/tpu/docs/v5e,
# /v5p and /v6e ("HBM capacity per chip": 16, 95 and 32 GB).
HBM = {"v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
# A chip of TPU7x is two devices, of which the compiler gives each so much.
HBM["tpu7x"] = int(94.74 * GIB)
TOPOLOGIES = ("v5e:4x4", "v5p:2x2x4", "v6e:4x4", "tpu7x:2x2x1")
MODELS = ("qwen3_1_7b", "qwen3_4b")


class Found(NamedTuple):
  """What a compiled program needs of one chip, in bytes.

  `total` is the compiler's own figure where it refused for want of memory;
  `cycles` its estimate for one microbatch a mini-batch, or one token of decode;
  `in_loops` the bytes of the largest collective inside of two loops or more.
  """

  arguments: int
  temporaries: int
  total: int
  collectives: dict[str, int]
  kernels: int
  seconds: float
  refused: str = ""
  beside: int = 0  # bytes beside the arguments
  cycles: float = 0.0
  in_loops: float = 0.0


def defaults() -> Iterator[Setting]:
  """Both presets on slices, a small one on one chip, and one too large."""
  for topology in TOPOLOGIES:
    # Devices of the slice: TPU7x has two a chip.
    count = 8 if topology.startswith("tpu7x") else 16
    for model in MODELS:
      for program in aot_programs.PROGRAMS:
        sampler = program in ("prefill", "decode")
        yield Setting(
          topology, model, program,
          fsdp=1 if sampler else count, tensor=4 if sampler else 1,
          rows=64 if sampler else count,
          sampler_tensor=1 if sampler or model == "qwen3_1_7b" else 4,
        )  # fmt: skip
  # What Colab lends.
  for program in aot_programs.PROGRAMS:
    sampler = program in ("prefill", "decode")
    yield Setting(
      "v5e:1x1", "smollm2_135m", program, rows=16 if sampler else 1,
      row_length=1024,
    )  # fmt: skip
  # Parameters, their gradients and Adam's moments on four chips of 16 GB.
  yield Setting("v5e:2x2", "qwen3_4b", "learner-full", fsdp=4, fits=False)


def collectives(text: str) -> dict[str, int]:
  """Counts the collectives of a compiled program's text, by kind.

  An asynchronous pair of -start and -done is one.
  """
  found = {}
  for kind in hlo.COLLECTIVES:
    count = len(re.findall(rf"[\s)}}]{kind}(?:-start)?\(", text))
    if count:
      found[kind] = count
  return found


def mesh_of(setting: Setting, devices: Sequence[Any]) -> Any:
  """The mesh of a setting.

  Raises:
    ValueError: it does not fit the devices.
  """
  from steppo_jax.models import mesh as mesh_lib

  data = setting.data or len(devices) // (setting.fsdp * setting.tensor)
  return mesh_lib.make_model_mesh(
    data=data, fsdp=setting.fsdp, tensor=setting.tensor, devices=devices
  )


def check(setting: Setting, devices: Sequence[Any]) -> Found:
  """Compiles one program for devices that need not be there.

  Raises:
    ValueError: the mesh does not fit the devices, or the rows the mesh.
  """
  import jax

  mesh = mesh_of(setting, devices)
  lower = aot_programs.lower_sampler
  if setting.program.startswith("learner"):
    lower = aot_programs.lower_learner
  started = time.perf_counter()
  with aot_programs.as_on(devices[0].platform):
    lowered = lower(setting, mesh)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    seconds = time.perf_counter() - started
    return Found(0, 0, hlo.used(str(error)), {}, 0, seconds, str(error))
  text, memory = compiled.as_text(), compiled.memory_analysis()
  held = memory.argument_size_in_bytes
  temporaries = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  program = hlo.Program(text)
  moved = [x.bytes for x in program.collectives() if x.depth > 2]
  return Found(
    held, temporaries, held + temporaries + new, collectives(text),
    text.count("tpu_custom_call"), time.perf_counter() - started,
    beside=temporaries + new,
    cycles=program.cycles(lambda depth: rounds(setting, mesh, depth)),
    in_loops=max(moved, default=0.0),
  )  # fmt: skip


def rounds(setting: Setting, mesh: Any, depth: int) -> float:
  """Rounds of a loop that data decides.

  Of a learner: one microbatch in each mini-batch, all of whose tokens are
  wanted, in chunks. Of a sampler: the blocks of the cache that attention reads
  for one token of decode, or for one group of runs of prefill.
  """
  if not setting.program.startswith("learner"):
    if depth < 1:
      return 1.0
    return aot_programs.seen(setting) / aot_programs.block_of(setting)
  if depth < 2:
    return 1.0
  from steppo_jax.ops import tiled_logprobs

  tokens = setting.rows * setting.row_length // mesh.shape["data"]
  return max(tokens / tiled_logprobs.TOKENS, 1.0)


def facts(
  setting: Setting, found: Found, hbm: int, mesh: Any
) -> dict[str, Any]:
  """A program for machines; a learner with what the whole run holds."""
  told = dataclasses.asdict(setting) | found._asdict() | {
    "refused": bool(found.refused), "hbm": hbm, "fit": fits(found, hbm)
  }  # fmt: skip
  chip = roofline.CHIPS[setting.topology.split(":")[0]]
  if found.refused:
    return told
  if not setting.program.startswith("learner"):
    if chip.clock:
      told["kernel_ms"] = aot_programs.kernel_ms(setting, mesh, chip)
      told["ms"] = 1e3 * found.cycles / chip.clock + told["kernel_ms"]
      told |= aot_programs.share_of_bound(setting, mesh, told["ms"], chip)
    return told
  handed = whole_run.hand_over(setting, mesh)
  told["whole_run"] = whole_run.held(setting, mesh, found.beside, handed, hbm)
  if chip.clock:
    # Of one microbatch, of which the program's mini-batches have one each.
    told["ms"] = 1e3 * found.cycles / chip.clock / 4
    tokens = (
      setting.rows
      * setting.row_length
      // (mesh.shape["data"] * mesh.shape["fsdp"])
    )
    told["mfu"] = whole_run.share_of_peak(
      setting, told["ms"] / 1e3, tokens, chip.flops / chip.devices
    )
  return told


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


def kernel(told: dict[str, Any]) -> str:
  """What of a sampler's time is its kernel's, reckoned, not compiled."""
  ms = told["kernel_ms"]
  return f", of which {ms:.2f} ms the kernel at the chip's peak" if ms else ""


def devices_of(topology: str) -> Sequence[Any]:
  """Devices of a topology that libtpu knows; none of them is there."""
  from jax.experimental import topologies

  # A host has four chips unless it is said otherwise. The cloud lends one of
  # v5e or v6e, and eight of them as one host.
  bounds = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}.get(topology.rpartition(":")[2])
  found = topologies.get_topology_desc(
    platform="tpu", topology_name=topology,
    **({"chips_per_host_bounds": bounds} if bounds else {}),
  )  # fmt: skip
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
  if args.staleness and args.sampler_tensor > 1:
    raise SystemExit("--staleness: no run has it with --sampler-tensor")
  return [
    Setting(
      topology, model, program, row_length=args.row_length, rows=args.rows,
      remat=args.remat, layers=args.layers, frozen=args.frozen,
      attention=args.attention, batch_rows=args.batch_rows,
      staleness=args.staleness,
      fits=not args.too_large, sampler_tensor=args.sampler_tensor,
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
  add(
    "--sampler-tensor", type=int, default=1,
    help="sampler.tensor of the run whose learner is checked",
  )  # fmt: skip
  add("--rows", type=int, default=16, help="rows or slots at once, in all")
  add("--row-length", type=int, default=4096)
  add(
    "--batch-rows", type=int, default=128,
    help="rows of a learner's whole batch, of all mini-batches: the episodes "
    "of an update, if each prompt extends the one before",
  )  # fmt: skip
  add(
    "--staleness", type=int, default=0,
    help="rollout.staleness of the run whose learner is checked",
  )  # fmt: skip
  add("--remat", default="full", choices=("none", "dots", "full"))
  add(
    "--frozen",
    default="float32",
    choices=("float32", "bfloat16"),
    help="type of parameters that are not trained; runs with compute=bfloat16 "
    "hold the type that they are stored in",
  )
  add(
    "--attention",
    default="auto",
    choices=("auto", "xla", "pallas"),
    help="sampler.attention of a sampler's program",
  )
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
  wrong, told = 0, []
  for setting in wanted:
    hbm = HBM[setting.topology.split(":")[0]]
    devices = devices_of(setting.topology)
    found = check(setting, devices)
    print(line(setting, found, hbm), flush=True)
    told.append(facts(setting, found, hbm, mesh_of(setting, devices)))
    if run := told[-1].get("whole_run"):
      print(whole_run.report(setting, run), flush=True)
      told[-1]["whole_run"] = whole_run.as_json(run)
    if "mfu" in told[-1]:
      print(
        f"  a microbatch: {told[-1]['ms']:.0f} ms of cycles at least, MFU "
        f"{told[-1]['mfu']:.1%} at most; largest collective in a loop of a "
        f"layer or chunk: {found.in_loops / 2**20:.1f} MiB"
      )
    if "mxu" in told[-1]:
      print(
        f"  a group of {told[-1]['tokens']} tokens: {told[-1]['ms']:.2f} ms at "
        f"least{kernel(told[-1])}, {told[-1]['mxu']:.1%} of the matrix units "
        "at most"
      )
    if "over_bound" in told[-1]:
      print(
        f"  a token of every slot: {told[-1]['ms']:.2f} ms at least"
        f"{kernel(told[-1])}, {told[-1]['over_bound']:.2f} of what reading "
        "weights and cache takes"
      )
    if fits(found, hbm) != setting.fits:
      wrong += 1
      print(f"  expected: {'fits' if setting.fits else 'does not fit'}")
    if found.refused:
      print("  " + found.refused.split("\n", 1)[0][:200])
  print(f"{len(wanted)} programs, {wrong} not as expected")
  print(json.dumps({"programs": told, "wrong": wrong}))
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
