"""Preflight: real runs in processes of their own, and what makes it fail."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
import tpu_tools

SCRIPT = tpu_tools.FOLDER / "preflight.py"


def start(*args, devices=2):
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  return subprocess.Popen(
    [sys.executable, SCRIPT, *map(str, args)],
    env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def finish(process):
  out, err = process.communicate(timeout=120)
  found = {line.split()[1]: line for line in out.splitlines()}
  return process.returncode, found, err


def test_a_sound_host_passes_every_check_and_is_left_clean(tmp_path):
  code, found, err = finish(
    start("--storage", tmp_path, "--devices", 2, "--platform", "cpu")
  )
  assert code == 0, err
  assert list(found) == ["devices", "psum", "memory", "storage", "clock"]
  assert all(line.startswith("ok ") for line in found.values())
  assert "not reported by cpu" in found["memory"]
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_missing_devices_and_the_wrong_platform_are_named(tmp_path):
  code, found, _ = finish(start("--storage", tmp_path, "--devices", 16))
  assert code == 1
  assert found["devices"].startswith("FAILED")
  assert "expected 16" in found["devices"]
  assert found["storage"].startswith("ok")  # one failure hides no other check
  code, found, _ = finish(start("--storage", tmp_path, "--platform", "tpu"))
  assert code == 1
  assert "platform cpu, expected tpu" in found["devices"]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  # Root may write to a read-only folder, and nobody below a file.
  if os.geteuid() == 0:
    folder = pathlib.Path("/proc/preflight")
  else:
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
  code, found, _ = finish(start("--storage", folder))
  assert code == 1
  assert found["storage"].startswith(f"FAILED  storage  {folder}: ")
  assert "storage not asked" in found["clock"]
  file = tmp_path / "file"
  file.touch()
  code, found, _ = finish(start("--storage", file))
  assert code == 1
  assert "File exists" in found["storage"]


@pytest.mark.slow
def test_two_processes_sum_over_each_others_devices(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [
    start(
      "--storage", tmp_path, "--devices", 4, "--coordinator",
      f"localhost:{port}", "--processes", 2, "--process", i,
    )
    for i in range(2)
  ]  # fmt: skip
  for process in processes:
    code, found, err = finish(process)
    assert code == 0, (found, err)
    assert "psum     4 devices" in found["psum"]
    assert "2 processes within" in found["clock"]


def test_too_little_free_memory_names_the_device(monkeypatch):
  preflight = tpu_tools.load("preflight")
  args = preflight.parse(["--storage", "x", "--free-gib", "2"])

  class Device:
    id, platform = 3, "tpu"

    def memory_stats(self):
      return {"bytes_limit": 4 * 2**30, "bytes_in_use": 3 * 2**30}

  monkeypatch.setattr("jax.local_devices", lambda: [Device()])
  with pytest.raises(preflight.Failed, match=r"device 3 has 1\.0 GiB free"):
    preflight.memory(args)
  args.free_gib = 0.5
  assert preflight.memory(args) == "1.0 GiB free"
