"""Workers that are another interpreter, with packages of its own."""

import pathlib
import sys
import venv

import numpy as np
import pools
import pytest

from steppo_jax.envs import base
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import worlds
from steppo_jax.envs.workers import pool
from steppo_jax.training import config, players

pytestmark = pytest.mark.usefixtures("no_process_is_left")
RECIPE = base.Recipe("steppo_jax.envs.household.env:HouseholdEnv", {})


@pytest.fixture(scope="module")
def python(tmp_path_factory):
  """An interpreter that has NumPy, a module `theirs`, and nothing else."""
  folder = tmp_path_factory.mktemp("other")
  venv.create(folder, with_pip=False, symlinks=True)
  site = next(folder.glob("lib/python*/site-packages"))
  for name in ("numpy", "numpy.libs"):
    found = pathlib.Path(np.__file__).parent.parent / name
    if found.exists():
      (site / name).symlink_to(found)
  (site / "theirs.py").write_text(
    "import importlib.util as u\n"
    "from steppo_jax import types\n"
    "from steppo_jax.envs import base\n"
    "class Env:\n"
    "  def reset(self, task, seed):\n"
    "    has = [n for n in ('numpy', 'theirs', 'jax') if u.find_spec(n)]\n"
    "    return types.TimeStep(' '.join(has), 0.0, False, False, {})\n"
    "  def step(self, text):\n"
    "    raise base.EnvRaised(text, 'as asked')\n"
    "  def close(self): pass\n"
  )
  return str(folder / "bin" / "python")


def test_it_plays_as_this_one_with_packages_of_its_own(python):
  task = worlds.generate(3, split="train", size="tiny")
  here = household.HouseholdEnv()
  with pool.Workers(RECIPE, 1, pools.QUICK, python) as workers:
    there = workers()
    assert there.reset(task, 0) == here.reset(task, 0)
    assert there.step("look") == here.step("look")
    there.close()
  theirs = base.Recipe("theirs:Env", {})
  with pool.Workers(theirs, 1, pools.QUICK, python) as workers:
    there = workers()
    assert there.reset(task, 0).observation == "numpy theirs"
    # The name under which an environment wants its fault to be counted.
    with pytest.raises(base.EnvRaised, match="as asked") as raised:
      there.step("TheirFault")
    assert raised.value.cause == "TheirFault"
    there.close()


def test_packages_of_this_one_are_not_among_them(python, tmp_path, monkeypatch):
  for name in ("numpy", "theirs"):
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.setenv("PYTHONHOME", str(tmp_path))
  theirs = base.Recipe("theirs:Env", {})
  with pool.Workers(theirs, 1, pools.QUICK, python) as workers:
    there = workers()
    assert there.reset(pools.TASK, 0).observation == "numpy theirs"
    there.close()


def test_one_that_cannot_be_started_is_told():
  for python, why in (
    ("/no/python", "no worker process: .*No such file"),
    (sys.executable, "No module named 'gone'"),
  ):
    recipe = base.Recipe("gone:Env", {})
    with (
      pool.Workers(recipe, 1, pools.QUICK, python) as workers,
      pytest.raises(base.EnvError, match=why),
    ):
      workers().reset(pools.TASK, 0)


def test_the_option_is_for_workers(python):
  with pytest.raises(ValueError, match="set env"):
    config.EnvConfig(python=python)
  made = players.make_env(config.EnvConfig(python=python, workers=1))
  task = worlds.generate(0, split="train", size="tiny")
  env = made()
  assert not env.reset(task, 0).terminated
  cmdline = pathlib.Path(f"/proc/{env._worker.pid}/cmdline").read_bytes()
  assert cmdline.split(b"\0")[0].decode() == python
  made.close()
