"""Runs of several processes on this machine, by the command line."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

_EXPERIMENT = """
import dataclasses, pathlib, sys
sys.path.insert(0, {here!r})
import small_runs
from steppo_jax.training.config import EvalConfig
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.sampler.options import SamplerConfig
made = small_runs.small_config(pathlib.Path({folder!r}))
CONFIG = dataclasses.replace(
  made,
  num_updates=4, tasks_per_update=3, group_size=2, num_devices=None,
  keep_journals=5, checkpoint_every=3, run_dir=None,
  rollout=dataclasses.replace(made.rollout, max_steps=3),
  evaluation=EvalConfig(every=2, episodes=3),
  sampler=SamplerConfig(num_slots=1, prefill_lengths=(64,)),
  learner=LearnerConfig(
    num_minibatches=2, microbatch_rows=4, critic_warmup=1, critic_epochs=1
  ),
)
"""


def write_base(folder: pathlib.Path) -> pathlib.Path:
  """An experiment of four updates over 4 devices: 3 groups of 2 episodes."""
  file = folder / "base.py"
  support = ROOT / "tests" / "support"
  file.write_text(_EXPERIMENT.format(here=str(support), folder=str(folder)))
  return file


def free_port() -> int:
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def start(
  base,
  run_dir,
  devices,
  *,
  kill=None,
  flags=(),
  options=(),
  found=False,
  absent=(),
  folders=None,
):
  """Processes of one run.

  Args:
    base: The experiment.
    run_dir: Its folder.
    devices: Number of devices of each process.
    kill: Process and place of `kill_points`.
    flags: Of the command line.
    options: For each process, more "key=value".
    found: Whether JAX finds the processes, by what Open MPI tells them.
    absent: Numbers of those that are not started.
    folders: For each process, the working directory.
  """
  port, processes = free_port(), []
  for index, count in enumerate(devices):
    env = os.environ | {
      "PYTHONPATH": str(ROOT),
      # The last of two equal flags holds.
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']}"
      f" --xla_force_host_platform_device_count={count}",
      "STEPPO_KILL_AT": kill[1] if kill and kill[0] == index else "",
    }
    command = [sys.executable, "-m", "steppo_jax", "train", str(base),
               f"run_dir={run_dir}", *flags]  # fmt: skip
    if found:
      command += ["--many-hosts"]
      env |= {
        # JAX makes the coordinator's port of the number in front.
        "OMPI_MCA_orte_hnp_uri": f"{port << 12}.0;tcp://127.0.0.1:{port}",
        "OMPI_COMM_WORLD_SIZE": str(len(devices)),
        "OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": "0",
      }  # fmt: skip
    elif len(devices) > 1:
      command += ["--coordinator", f"127.0.0.1:{port}", "--processes",
                  str(len(devices)), "--process", str(index)]  # fmt: skip
    if options:
      command += options[index]
    if index in absent:
      continue
    processes.append(
      subprocess.Popen(
        command, env=env, cwd=folders[index] if folders else base.parent,
        text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
      )
    )  # fmt: skip
  return processes


def end(processes):
  """Exit statuses, and what each process said."""
  try:
    said = [p.communicate(timeout=400)[1] for p in processes]
  finally:
    for process in processes:
      process.kill()
  return [p.returncode for p in processes], said


def train(*args, **kwargs):
  return end(start(*args, **kwargs))
