"""What does not go together is refused by all processes."""

import host_runs
import pytest


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
