"""The command `view` as a process of its own."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import recorded_runs


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
      group = pathlib.Path(f"/proc/{process.pid}/autogroup")
      if group.exists():
        nice = re.search(r"nice (-?\d+)", group.read_text())
        ours = pathlib.Path("/proc/self/autogroup").read_text()
        if own_session:
          assert nice[1] == "19"
        else:  # That of the tests, and as it was.
          assert nice[0] in ours
          assert nice[1] != "19"
    finally:
      process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
