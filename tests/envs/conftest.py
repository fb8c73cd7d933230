"""Where the real ALFWorld data are, and a small household made by hand."""

import contextlib
import os
import pathlib
import time

import pytest

_BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def alfworld_dir():
  """The folder of the real games; tests that need it are skipped without."""
  root = pathlib.Path(os.environ.get("STEPPO_DATA_DIR", _BESIDE))
  if not (root / "alfworld").is_dir():
    pytest.skip(
      f"no real ALFWorld data at {root / 'alfworld'}; set STEPPO_DATA_DIR"
    )
  return root / "alfworld"


@pytest.fixture
def kitchen():
  """A kitchen: cabinets 2 and 1 share location 3, everything else is apart.

  Bits of the objects: 1 pickupable, 2 cleanable, 4 heatable, 8 coolable,
  16 toggleable, 32 sliceable, 64 is a receptacle.
  """
  return {
    "R": [
      ["cabinet 2", "cabinet", 3, 1],
      ["cabinet 1", "cabinet", 3, 1],
      ["countertop 1", "countertop", 0, 0],
      ["fridge 1", "fridge", 1, 1],
      ["microwave 1", "microwave", 2, 1],
      ["sinkbasin 1", "sinkbasin", 4, 0],
    ],
    "O": [
      ["apple 2", "apple", 47, [3], [1]],
      ["apple 1", "apple", 47, [2], [0]],
      ["cup 1", "cup", 79, [0], [3]],
      ["desklamp 1", "desklamp", 16, [2], [0]],
      ["fork 1", "fork", 3, [2], [0]],
      ["knife 1", "knife", 3, [2], [0]],
      ["window 1", "window", 0, [], [4]],
    ],
    "C": {
      "cabinet": ["cup"],
      "countertop": ["apple", "cup", "fork", "knife"],
      "fridge": ["apple", "cup"],
      "microwave": ["apple", "cup"],
      "sinkbasin": ["apple", "cup", "fork", "knife"],
    },
    "A": 5,
    "G": [
      ["heatable", "?o"],
      ["objecttype", "?o", "appletype"],
      ["receptacletype", "?r", "fridgetype"],
      ["ishot", "?o"],
      ["inreceptacle", "?o", "?r"],
    ],
    "X": {"inreceptacleobject": [[4, 2]]},
  }


def children():
  """Processes whose parent this is, zombies included."""
  found = set()
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):
      fields = path.read_text().rpartition(")")[2].split()
      if int(fields[1]) == os.getpid():
        found.add(int(path.parent.name))
  return found


@pytest.fixture
def no_process_is_left():
  """Fails a test that leaves a process, a zombie included."""
  before = children()
  yield
  deadline = time.monotonic() + 10
  while children() - before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not children() - before
