"""The environment around the engine, its registry, and the terminal game."""

import concurrent.futures
import io
import json
import random

import pytest
from rich import console as rich_console

from steppo_jax import types
from steppo_jax.commands import play
from steppo_jax.envs import base
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import worlds as household_worlds


def _task(seed=0, size="tiny"):
  return household_worlds.generate(seed, split="train", size=size)


def _kitchen_task(kitchen):
  payload = {"game": kitchen, "task": "heat some apple and put it in fridge."}
  return types.Task("kitchen", "household", "heat", payload)


def test_only_the_winning_step_is_rewarded_and_ends_the_episode():
  env = household.HouseholdEnv(invalid_penalty=0.1)
  task = _task(5)
  first = env.reset(task, 0)
  assert (first.reward, first.terminated, first.truncated) == (0, False, False)
  assert task.payload["task"] in first.observation
  steps = [env.step(command) for command in env.game.plan()]
  assert [step.reward for step in steps] == [0.0] * (len(steps) - 1) + [1.0]
  assert [step.terminated for step in steps] == (
    [False] * (len(steps) - 1) + [True]
  )
  assert steps[-1].info["won"]
  assert len(steps) == task.golden_steps


def test_a_refused_command_costs_the_penalty_and_nothing_else():
  env = household.HouseholdEnv(invalid_penalty=0.25)
  env.reset(_task(), 0)
  before = env.game.save()
  step = env.step("take the moon from sky 1")
  assert step.observation == "Nothing happens."
  assert (step.reward, step.terminated) == (-0.25, False)
  assert step.info["invalid"]
  assert env.game.save() == before
  step = env.step("look")
  assert (step.reward, step.info["invalid"]) == (0.0, False)


def test_anchors_tell_visible_states_apart(kitchen):
  env = household.HouseholdEnv()
  env.reset(_kitchen_task(kitchen), 0)
  anchors = [
    env.step(command).info["anchor"]
    for command in (
      "go to countertop 1",
      "take apple 1 from countertop 1",
      "move apple 1 to countertop 1",
      "use desklamp 1",
      "go to fridge 1",
      "open fridge 1",
      "take apple 2 from fridge 1",
      "cool apple 2 with fridge 1",
    )
  ]
  # Putting the apple back leads to the state before it was taken.
  assert anchors[0] == anchors[2]
  assert len(set(anchors)) == len(anchors) - 1
  assert anchors[0] == (
    "at countertop 1 | On the countertop 1, you see a apple 1, a desklamp 1, "
    "a fork 1, and a knife 1."
  )
  again = household.HouseholdEnv()
  again.reset(_kitchen_task(kitchen), 1)
  again.step("look")
  assert again.step("go to countertop 1").info["anchor"] == anchors[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_restored_game_goes_on_as_if_never_interrupted(seed):
  task = _task(seed, "medium")
  rng = random.Random(seed)
  env = household.HouseholdEnv()
  env.reset(task, 0)
  for _ in range(25):
    env.step(rng.choice(env.admissible_commands))
  saved = json.loads(json.dumps(env.game.save()))
  other = household.HouseholdEnv()
  other.reset(task, 0)
  other.game.restore(saved)
  for _ in range(40):
    assert other.admissible_commands == env.admissible_commands
    command = rng.choice(env.admissible_commands)
    assert other.step(command) == env.step(command)
  assert other.game.plan() == env.game.plan()


def test_a_reset_forgets_the_episode_before_it():
  env, task = household.HouseholdEnv(), _task(2)
  first = env.reset(task, 0)
  for command in env.game.plan():
    env.step(command)
  assert env.reset(task, 1) == first


def _play(task, seed):
  env, rng, log = household.HouseholdEnv(), random.Random(seed), []
  env.reset(task, 0)
  for _ in range(150):
    commands = env.admissible_commands
    step = env.step(rng.choice(commands))
    log.append((step, commands))
  return log


def test_games_in_many_threads_are_those_of_one_thread():
  tasks = [_task(seed, "small") for seed in range(4)]
  jobs = [(tasks[k % 4], k) for k in range(16)]
  alone = [_play(*job) for job in jobs]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    together = list(pool.map(lambda job: _play(*job), jobs))
  assert together == alone


def test_one_household_played_by_many_threads_does_not_mix():
  # The unchanging world and its caches are shared, the states are not.
  task = _task(1, "full")
  world = household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect="move"
  ).world

  def run(seed):
    game = household.Game(world, "do it.", dialect="move")
    rng, log = random.Random(seed), []
    for _ in range(150):
      log.append(game.step(rng.choice(game.admissible_commands)))
    return log

  alone = [run(seed) for seed in range(8)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(run, range(8))) == alone


def test_idle_agents_win_nothing():
  for seed in range(30):
    env = household.HouseholdEnv()
    env.reset(_task(seed), 0)
    for command in ("look", "inventory", "help", "", "won", "quit") * 3:
      step = env.step(command)
      assert (step.reward, step.terminated) == (0.0, False)


@pytest.mark.parametrize("penalty", [-0.1, float("nan")])
def test_a_negative_penalty_is_refused(penalty):
  with pytest.raises(ValueError, match="invalid_penalty must be at least 0"):
    household.HouseholdEnv(invalid_penalty=penalty)


def test_unknown_dialects_are_refused(kitchen):
  message = "dialect must be one of move, put, got 'drop'"
  with pytest.raises(ValueError, match=message):
    household.HouseholdEnv(dialect="drop")
  with pytest.raises(ValueError, match=message):
    household.Game.from_compact(kitchen, "do it.", dialect="drop")


def test_a_foreign_task_is_refused_by_name(kitchen):
  env = household.HouseholdEnv()
  task = types.Task("shop/1", "webshop", "shop", {"goal": "a red lamp"})
  with pytest.raises(ValueError, match=r"task shop/1: .* needs 'game'"):
    env.reset(task, 0)
  broken = dict(kitchen, R=[["cabinet 1"]])
  with pytest.raises(ValueError, match="task kitchen: compact game"):
    env.reset(_kitchen_task(broken), 0)
  with pytest.raises(RuntimeError, match="call reset"):
    household.HouseholdEnv().step("look")


def test_a_foreign_state_is_refused(kitchen):
  env = household.HouseholdEnv()
  env.reset(_task(0), 0)
  with pytest.raises(ValueError, match="saved state is not of this game"):
    env.game.restore({"place": 3})
  other = household.Game.from_compact(kitchen, "do it.", dialect="move")
  with pytest.raises(ValueError, match="saved state is not of this game"):
    env.game.restore(other.save())


def test_environments_are_made_by_name():
  env = base.make("household", invalid_penalty=0.5)
  env.reset(_task(), 0)
  assert env.step("fly").reward == -0.5
  with pytest.raises(ValueError, match="did you mean 'household'"):
    base.make("houshold")


def test_golden_steps_are_computed_where_the_task_has_none(kitchen):
  task = _kitchen_task(kitchen)
  # Go, open, take, go, heat, go, move: the fridge stays open.
  assert household.golden_steps(task) == 7
  lost = _kitchen_task(kitchen | {"C": {"countertop": ["apple"]}})
  with pytest.raises(ValueError, match="task kitchen: game 'heat some apple"):
    household.golden_steps(lost)


def _terminal(lines, **options):
  lines = iter(lines)
  shown = io.StringIO()
  out = rich_console.Console(file=shown, width=200)
  won = play.play_household(ask=lambda _: next(lines), console=out, **options)
  return won, shown.getvalue()


def test_a_person_wins_by_following_the_hints():
  task = _task(7)
  game = household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect="move"
  )
  plan = game.plan()
  lines = ["hint", "commands", "look", "undo", *plan]
  won, text = _terminal(lines, seed=7, size="tiny")
  assert won
  assert plan[0] in text
  assert all(command in text for command in game.admissible_commands)
  assert f"You won in {len(plan)} steps; {len(plan)} suffice." in text


def test_a_person_can_leave():
  won, text = _terminal(["go to nowhere 1", "quit"], size="small")
  assert not won
  assert "Nothing happens." in text


def test_a_person_plays_real_games(alfworld_dir):
  won, text = _terminal(
    ["quit"], data_dir=str(alfworld_dir), split="valid_seen", seed=139
  )
  assert not won
  assert "alfworld/valid_seen/" in text
  with pytest.raises(ValueError, match="seed must be below 140"):
    play.play_household(
      data_dir=str(alfworld_dir), split="valid_seen", seed=140
    )
