"""Environments by name: the table, other packages, options, mistakes."""

import sys

import pytest

from steppo_jax import types
from steppo_jax.envs import base, seeds
from steppo_jax.envs.household import env as household
from steppo_jax.envs.workers import options as workers_options
from steppo_jax.envs.workers import pool
from steppo_jax.training import config, players

METADATA = "Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n"
MODULE = """
from steppo_jax import types
from steppo_jax.envs import base

ROW = base.Row("third_party:Env", "steppo_jax.envs.seeds:SeedTasks")
NO_ROW = 3


class Env:
  def __init__(self, *, word, invalid_penalty=0.0):
    self.said = f"{word} {invalid_penalty}"

  def reset(self, task, seed):
    return types.TimeStep(self.said, 0.0, False, False, {})

  def step(self, text):
    return types.TimeStep(text, 1.0, True, False, {"won": True})

  def close(self):
    pass
"""


@pytest.fixture
def third_party(tmp_path, monkeypatch):
  """An installed package with entry points, as pip leaves it behind."""
  (tmp_path / "third_party.py").write_text(MODULE)
  folder = tmp_path / "third_party-1.0.dist-info"
  folder.mkdir()
  (folder / "METADATA").write_text(METADATA)
  (folder / "entry_points.txt").write_text(
    "[steppo_jax.envs]\n"
    "parlour = third_party:ROW\n"
    "broken = third_party:NO_ROW\n"
    "missing = third_party:NOTHING\n"
    "household = third_party:ROW\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop("third_party", None)


def options(*given, **changes):
  return config.EnvConfig(options=given, **changes)


def test_every_row_of_the_table_leads_to_something_callable():
  for name, row in base.ENVS.items():
    assert callable(base.load(row.env)), name
    assert callable(base.load(row.tasks)), name


def test_an_unknown_name_tells_the_nearest():
  with pytest.raises(ValueError, match=r"env\.name='houshold'.*'household'"):
    config.EnvConfig(name="houshold")
  with pytest.raises(ValueError, match="did you mean 'alfworld'"):
    base.make("alfword")


def test_options_go_where_they_are_parameters():
  recipes = players.recipes(config.EnvConfig(size="tiny", invalid_penalty=0.25))
  assert recipes.env.options == {"invalid_penalty": 0.25}
  assert recipes.tasks.options == {"size": "tiny"}
  recipes = players.recipes(options("dialect=put"))
  assert recipes.env.options == {"invalid_penalty": 0.1, "dialect": "put"}


def test_values_are_json_or_else_text():
  recipes = players.recipes(
    options("crash=0.5", "env=household", name="faulty")
  )
  assert recipes.env.options == {"crash": 0.5, "env": "household"}


@pytest.mark.parametrize(
  ("given", "changes", "message"),
  [
    (("dialekt=put",), {}, "has no option 'dialekt', did you mean 'dialect'"),
    (("dialect",), {}, "expected name=value, got 'dialect'"),
    ((), {"name": "alfworld"}, r"needs env\.data_dir=.*--data-dir"),
    ((), {"name": "remote"}, r"env\.name=remote needs env\.options=url="),
  ],
)
def test_options_that_do_not_fit_are_refused(given, changes, message):
  with pytest.raises(ValueError, match=message):
    players.recipes(options(*given, **changes))


def test_a_number_of_workers_is_not_negative():
  with pytest.raises(ValueError, match=r"env\.workers=-1"):
    config.EnvConfig(workers=-1)


def test_workers_or_this_process():
  here = players.make_env(config.EnvConfig())
  assert isinstance(here(), household.HouseholdEnv)
  assert here.at_once is None
  there = players.make_env(config.EnvConfig(workers=2))
  assert isinstance(there, pool.Workers)
  assert there.at_once == 2
  there.close()
  here.close()


def test_another_package_adds_an_environment(third_party):
  assert "parlour" in base.names()
  env = options("word=hello", name="parlour")
  tasks = players.make_tasks(env).sample(2, seed=0, update=0)
  assert [t.env for t in tasks] == ["parlour"] * 2
  made = players.make_env(env)()
  assert made.reset(tasks[0], 0).observation == "hello 0.1"
  recipe = players.recipes(env).env
  with pool.Workers(recipe, 1, workers_options.WorkerLimits()) as workers:
    there = workers()
    assert there.reset(tasks[0], 0).observation == "hello 0.1"
    there.close()


def test_another_package_does_not_change_our_own(third_party):
  assert base.row("household") == base.ENVS["household"]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("broken", "third_party:NO_ROW of package third-party is not a"),
    ("missing", "third-party does not load: AttributeError"),
  ],
)
def test_a_broken_entry_point_names_its_package(third_party, name, message):
  with pytest.raises(ValueError, match=message):
    config.EnvConfig(name=name)


@pytest.mark.parametrize("target", ["json", "json:nothing", "json:__name__"])
def test_a_target_that_is_not_callable_is_refused(target):
  with pytest.raises(ValueError, match="is not 'module:name' of something"):
    base.load(target)


def test_seeds_of_splits_do_not_meet():
  made = seeds.SeedTasks("x", ("train", "test"))
  train = made.sample(50, seed=0, update=3)
  assert train == made.sample(50, seed=0, update=3)
  assert train != made.sample(50, seed=0, update=4)
  test = made.panel("test", 50)
  assert not {t.payload["seed"] for t in train} & {
    t.payload["seed"] for t in test
  }
  assert max(t.payload["seed"] for t in test) < 2**32
  with pytest.raises(ValueError, match="split 'dev' is none of train, test"):
    made.panel("dev", 1)
  with pytest.raises(ValueError, match="1 to 16"):
    seeds.SeedTasks("x", ())


def test_tasks_go_through_json():
  task = types.Task("u", "e", "f", {"a": [1, {"b": "c"}]}, 4)
  assert types.task_from_json(types.task_to_json(task)) == task
  with pytest.raises(ValueError, match="not a task"):
    types.task_from_json({"uid": "u"})
