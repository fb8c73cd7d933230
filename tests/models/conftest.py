"""What tests beside other packages share."""

import os
import pathlib
import tarfile

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def peer() -> str:
  """An interpreter with torch, transformers and peft."""
  made = _ROOT / ".venv-transformers" / "bin" / "python"
  python = os.environ.get("STEPPO_PEER_PYTHON", str(made))
  if not pathlib.Path(python).exists():
    pytest.skip(f"no {python}: make test-models makes it")
  return python


@pytest.fixture(scope="session")
def released_templates() -> dict[str, str]:
  """Chat templates of released models by name; none is kept here.

  They are those that llama.cpp tests with, in the source of llama-cpp-python.
  """
  found = {}
  for path in (_ROOT / ".cache" / "templates").glob("*.tar.gz"):
    with tarfile.open(path) as archive:
      for member in archive:
        file = pathlib.PurePosixPath(member.name)
        if file.match("models/templates/*.jinja"):
          found[file.stem] = archive.extractfile(member).read().decode()
  if not found:
    pytest.skip("no templates in .cache/templates: make test-models gets them")
  return found
