"""Puts the folder `experiments/` into the wheel, as `steppo_jax/experiments`.

Everything else that setuptools has to know stands in pyproject.toml.
"""

import pathlib

import setuptools
from setuptools.command import build_py


class BuildPy(build_py.build_py):
  """Copies the experiments and the weights that they start from."""

  def run(self):
    """Builds the package; an editable one reads the experiments in place."""
    super().run()
    if not self.editable_mode:
      for source, target in self._experiments():
        self.mkpath(str(target.parent))
        self.copy_file(str(source), str(target), preserve_mode=False)

  def get_outputs(self, include_bytecode=1):
    """All that is written, the experiments with it."""
    outputs = super().get_outputs(include_bytecode)
    return [*outputs, *(str(target) for _, target in self._experiments())]

  def _experiments(self):
    package = pathlib.Path(self.build_lib) / "steppo_jax"
    for source in sorted(pathlib.Path("experiments").rglob("*")):
      if source.suffix in (".py", ".md", ".safetensors"):
        yield source, package / source


setuptools.setup(cmdclass={"build_py": BuildPy})
