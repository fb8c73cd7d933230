"""What does not go together is refused by all processes, none is left waiting.

A process that fails tells the others why, and they end as it does.
"""

import host_runs
import pytest

from steppo_jax.processes import signals


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return host_runs.write_base(tmp_path_factory.mktemp("refused"))


@pytest.mark.slow
def test_devices_of_some_processes_alone_are_refused(base, tmp_path):
  options = [["num_devices=3"]] * 2
  status, said = host_runs.train(
    base, tmp_path / "run", [2, 2], options=options
  )
  assert status == [2, 2], said
  assert all("num_devices=3 takes [2, 1] devices" in text for text in said)
  assert not (tmp_path / "run").exists()


# As a disk that is full on one of the machines, in the middle of an update.
_FULL = """
import jax
from steppo_jax.learner import state
put_batch = state.put_batch
def full(*args):
  if jax.process_index() == {process}:
    raise OSError(28, "No space left on device")
  return put_batch(*args)
state.put_batch = full
"""


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_who_fails_says_why_at_all_processes(base, tmp_path, process):
  full = base.with_name(f"full{process}.py")
  full.write_text(base.read_text() + _FULL.format(process=process))
  status, said = host_runs.train(full, tmp_path / "run", [1, 1])
  assert status == [1, 1], said
  assert "Traceback" in said[process]
  why = "OSError: [Errno 28] No space left on device"
  assert f"process {process}, which failed: {why}" in said[1 - process]


@pytest.mark.slow
@pytest.mark.parametrize("absent", [0, 1])
def test_who_does_not_come_is_named(base, tmp_path, absent):
  flags = ["--host-limit", "5"]
  status, said = host_runs.train(
    base, tmp_path / "run", [1, 1], flags=flags, absent=[absent]
  )
  if absent == 0:
    assert status == [1], said
    assert "no process answers at --coordinator" in said[0]
  else:
    assert status == [signals.RESTARTABLE], said
    assert "process 1, not there for the start 5 s after" in said[0]


@pytest.mark.slow
def test_processes_with_folders_of_their_own_are_refused(base, tmp_path):
  folders = [tmp_path / name for name in "ab"]
  for folder in folders:
    folder.mkdir()
  status, said = host_runs.train(base, "run", [1, 1], folders=folders)
  assert status == [2, 2], said
  for text in said:
    assert f"process 1 does not see in {folders[1] / 'run'}" in text
  assert not any((folder / "run").exists() for folder in folders)
