"""What importing the package costs, and that every public name is there."""

import subprocess
import sys

import pytest

import steppo_jax

HEAVY = ("flax", "optax", "orbax", "tensorflow", "tensorflow_datasets")


def _loaded(code):
  """Names of the packages that a fresh interpreter holds after `code`."""
  show = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
  command = [sys.executable, "-c", f"{code}\n{show}"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
  assert not _loaded("import steppo_jax") & {"jax", "numpy", *HEAVY}


def test_the_pure_functions_need_only_jax():
  code = "import steppo_jax; steppo_jax.step_gae; steppo_jax.whiten"
  assert not _loaded(code) & set(HEAVY)


def test_the_table_is_read_without_jax():
  code = "import steppo_jax; steppo_jax.ALGORITHMS['steppo']"
  assert "jax" not in _loaded(code)


@pytest.mark.parametrize("name", steppo_jax._PUBLIC)
def test_every_public_name_exists_and_is_explained(name):
  assert name in dir(steppo_jax)
  value = getattr(steppo_jax, name)
  assert value.__doc__ or isinstance(value, dict)


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'step_gea'"):
    _ = steppo_jax.step_gea
