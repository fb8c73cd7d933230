"""A run folder has one owner, until its process ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from steppo_jax.storage import lease

CODE = """
import sys, time
from steppo_jax.storage import lease
with lease.hold(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", CODE, str(tmp_path)], stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b"held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_a_second_process_is_kept_out_and_told_of_the_first(holder, tmp_path):
  said = rf"process {holder.pid} on {socket.gethostname()}"
  with pytest.raises(RuntimeError, match=said), lease.hold(tmp_path):
    pass
  with pytest.raises(RuntimeError, match="choose another run_dir"):
    lease.hold(tmp_path).__enter__()


def test_the_lease_of_a_killed_process_is_free(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with lease.hold(tmp_path):
    found = json.loads((tmp_path / lease.NAME).read_text())
    assert found["pid"] == os.getpid()


def test_a_folder_can_be_taken_again_and_by_nobody_at_once(tmp_path):
  for _ in range(2):
    with (
      lease.hold(tmp_path),
      pytest.raises(RuntimeError, match="another process"),
    ):
      lease.hold(tmp_path).__enter__()


def test_a_heartbeat_of_another_machine_counts_until_it_is_old(tmp_path):
  path = tmp_path / lease.NAME
  path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
  with pytest.raises(RuntimeError, match="process 7 on elsewhere"):
    lease.hold(tmp_path).__enter__()
  long_ago = time.time() - 1000
  os.utime(path, (long_ago, long_ago))
  with lease.hold(tmp_path):
    pass


@pytest.mark.parametrize("text", ["", "[]", '{"pid"', "\0"])
def test_a_broken_lease_file_stops_nobody(tmp_path, text):
  (tmp_path / lease.NAME).write_text(text)
  with lease.hold(tmp_path):
    pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / lease.NAME).mkdir()
  with (
    pytest.raises(RuntimeError, match="cannot write in the run folder"),
    lease.hold(tmp_path),
  ):
    pass
