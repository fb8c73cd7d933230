"""The command `view` as a process of its own."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import recorded_runs


def _autogroup(process):
  """Linux's group of a session and its weight; "" where there are none."""
  path = pathlib.Path(f"/proc/{process}/autogroup")
  return path.read_text().strip() if path.exists() else ""


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("own_session", [True, False])
def test_runs_of_the_machine_go_before_the_viewer(tmp_path, own_session):
  run = recorded_runs.make(tmp_path / "a-seed0", updates=1)
  with subprocess.Popen(
    [
      sys.executable, "-m", "steppo_jax", "view", str(run), "--no-browser",
      "--cache", str(tmp_path / "cache"),
    ],
    stdout=subprocess.PIPE, text=True, start_new_session=own_session,
  ) as process:  # fmt: skip
    try:
      assert process.stdout.readline().startswith("listening on ")
      assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
      group = _autogroup(process.pid)
      if group and own_session:
        assert re.search(r"nice 19$", group)
      elif group:  # That of the tests, and as it was.
        assert group == _autogroup("self")
        assert not re.search(r"nice 19$", group)
      process.send_signal(signal.SIGINT)
      assert process.wait(20) == 0
    finally:
      process.kill()
