"""The original engine, in workers, says what ours says."""

import importlib.util
import random
import tarfile

import pytest

from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.envs.household import alfworld_original
from steppo_jax.envs.household import env as household
from steppo_jax.envs.workers import options, pool
from steppo_jax.training import config, players

LIMITS = options.WorkerLimits(
  start_s=60, reset_s=60, step_s=20, close_s=10, memory_mb=4096
)
RECIPE = base.Recipe(
  "steppo_jax.envs.household.alfworld_original:OriginalEnv", {}
)


@pytest.fixture(scope="module")
def release(alfworld_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("release")
  with tarfile.open(alfworld_dir / "original_games_24.tar.xz") as archive:
    archive.extractall(folder, filter="data")
  return folder


def _same(original, ours, where):
  assert original.observation == ours.observation.strip(), where
  assert original.info["commands"] == ours.info["commands"], where
  for field in ("reward", "terminated"):
    assert getattr(original, field) == getattr(ours, field), where
  assert original.info["invalid"] == ours.info["invalid"], where


def _compare(tasks, steps):
  """Plays both engines side by side; returns the number of states."""
  if importlib.util.find_spec("textworld") is None:
    pytest.skip("ALFWorld's engine is not installed: pip install alfworld")
  rng, states = random.Random(0), 0
  with pool.Workers(RECIPE, 1, LIMITS) as workers:
    there, here = workers(), household.HouseholdEnv()
    for task in tasks:
      _same(there.reset(task, 0), here.reset(task, 0), task.uid)
      commands = [*here.game.plan(), "fly away"]
      for _ in range(steps):
        _same(*[env.step("look") for env in (there, here)], task.uid)
        choice = rng.choice(here.admissible_commands)
        _same(*[env.step(choice) for env in (there, here)], (task.uid, choice))
        states += 2
      there.reset(task, 0)
      here.reset(task, 0)
      for command in commands:
        _same(
          *[env.step(command) for env in (there, here)], (task.uid, command)
        )
        states += 1
      assert here.game.won
    there.close()
  return states


def test_the_original_engine_says_what_ours_says(release):
  tasks = alfworld_original.load_tasks(release, "valid_seen")
  # One of each family, as far as there are.
  picked = list({task.family: task for task in tasks}.values())[:2]
  assert _compare(picked, steps=6) > 25


@pytest.mark.slow
def test_the_original_engine_says_what_ours_says_in_all_24_games(release):
  tasks = [
    task
    for split in ("train", "valid_seen")
    for task in alfworld_original.load_tasks(release, split)
  ]
  assert len(tasks) == 24
  assert _compare(tasks, steps=20) > 1000


def test_tasks_are_those_of_our_engine_and_name_their_file(release):
  tasks = {}
  for name in ("alfworld", "alfworld_original"):
    recipes = players.recipes(
      config.EnvConfig(name=name, data_dir=str(release))
    )
    tasks[name] = recipes.tasks.make().panel("valid_seen", 100)
  ours, original = tasks.values()
  assert len(ours) == len(original) == 12
  for one, other in zip(ours, original, strict=True):
    assert one.uid == other.uid
    assert one.payload.items() <= other.payload.items()
    assert other.payload["game_file"].endswith("/game.tw-pddl")
    assert other.env == "alfworld_original"


def test_releases_without_game_files_are_refused(release, tmp_path):
  trial = next(release.glob("json_2.1.1/train/*/*"))
  copy = tmp_path / "train" / trial.parent.name / trial.name
  copy.mkdir(parents=True)
  for name in ("initial_state.pddl", "traj_data.json"):
    (copy / name).write_bytes((trial / name).read_bytes())
  with pytest.raises(ValueError, match=r"game.tw-pddl is missing"):
    alfworld_original.load_tasks(tmp_path, "train")


def test_bad_options_and_a_missing_package_are_named():
  with pytest.raises(ValueError, match="invalid_penalty must be at least 0"):
    alfworld_original.OriginalEnv(invalid_penalty=-1)
  with pytest.raises(ValueError, match="dialect must be one of move, put"):
    alfworld_original.OriginalEnv(dialect="say")
  if importlib.util.find_spec("textworld") is None:
    with pytest.raises(RuntimeError, match=r"pip install 'steppo_jax\[alfw"):
      alfworld_original.OriginalEnv()
  else:
    env = alfworld_original.OriginalEnv()
    with pytest.raises(ValueError, match="needs 'task' and a readable"):
      env.reset(types.Task("t", "alfworld_original", "f", {}), 0)
