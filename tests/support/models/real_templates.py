"""Chat templates of released models, downloaded for a test; none is kept here.

The source package of llama-cpp-python carries those that llama.cpp tests with.
`STEPPO_TEMPLATES_DIR` names folders of more, separated by colons, such as the
`examples` of the source package of vllm, which pip alone cannot fetch without
building it.
"""

import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

PACKAGE = "llama-cpp-python==0.3.36"


def read(folder: pathlib.Path) -> dict[str, str]:
  """Sources by file name, without the ending.

  Args:
    folder: An empty folder that the package is downloaded to.
  """
  name = PACKAGE.partition("=")[0]
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
             "--no-binary", name, "--dest", str(folder), PACKAGE]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    pytest.skip(f"pip could not download {PACKAGE}: {done.stderr[-300:]}")
  found = {}
  (archive,) = folder.glob("*.tar.gz")
  with tarfile.open(archive) as files:
    for member in files:
      path = pathlib.PurePosixPath(member.name)
      if path.parts[-3:-1] == ("models", "templates") and (
        path.suffix == ".jinja"
      ):
        found[path.stem] = files.extractfile(member).read().decode()
  for more in os.environ.get("STEPPO_TEMPLATES_DIR", "").split(":"):
    if more:
      for path in pathlib.Path(more).glob("*.jinja"):
        found[path.stem] = path.read_text(encoding="utf-8")
  return found
