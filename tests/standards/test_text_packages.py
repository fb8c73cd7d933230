"""Games of the real packages, played; run by `make test-standards`."""

import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_runs
import worlds

from steppo_jax.envs import base, experts, guides
from steppo_jax.envs.workers import options as workers_options
from steppo_jax.envs.workers import pool
from steppo_jax.packing import options as packing_options
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import loop
from steppo_jax.sampler import options as sampler_options
from steppo_jax.storage import metrics
from steppo_jax.training import config

pytestmark = [
  pytest.mark.standards,
  # Their own: a process that is still there, files and warnings of Pygame.
  pytest.mark.filterwarnings("ignore"),
]

# What an episode of each is played with, and commands of a long game.
WORLDS = {
  "textworld_express": ({"game": "coin"}, ["look around", "inventory"]),
  "scienceworld": ({}, ["look around", "open door to kitchen"]),
  "textarena": ({"game": "GuessTheNumber-v0-hardcore"}, ["[1]", "[2]"]),
  "reasoning_gym": ({"sets": ["leg_counting", "gcd"]}, ["7"]),
  "minigrid": ({}, ["turn left", "go forward"]),
}


@pytest.fixture(autouse=True, scope="module")
def _packages():
  """Puts the packages behind our own on the path, for workers too."""
  room = pathlib.Path(os.environ["STEPPO_STANDARDS"]) / "text-worlds"
  found = next(room.glob("lib/python*/site-packages"))
  sys.path.append(str(found))
  yield
  sys.path.remove(str(found))


def parts(name, **options):
  own = WORLDS[name][0] | options
  return base.resolve(name, {"name": name, "invalid_penalty": 0.1}, own)


@pytest.fixture
def start():
  """Makes environments, which are closed when the test ends."""
  made = []

  def one(name, **options):
    recipes = parts(name, **options)
    made.append(recipes.env.make())
    return made[-1], recipes.tasks.make()

  yield one
  for env in made:
    env.close()


@pytest.mark.parametrize("name", list(WORLDS))
def test_two_environments_play_the_same_task_alike(start, name):
  (one, tasks), (other, _) = start(name), start(name)
  for split in ("train", "valid_seen", "valid_unseen"):
    task = tasks.panel(split, 2)[1]
    first = one.reset(task, 0)
    assert first.reward == 0.0
    assert other.reset(task, 0) == first
    for command in WORLDS[name][1]:
      # One after the other, so that they cannot share random numbers.
      answers = [env.step(command) for env in (one, other)]
      assert answers[0] == answers[1]
  firsts = {
    one.reset(tasks.panel(split, 1)[0], 0).observation
    for split in ("train", "valid_seen", "valid_unseen")
  }
  assert len(firsts) == 3 or name in ("textarena", "minigrid")
  assert guides.get(name).tools["env_step"].key == "action"


def test_coin_is_won_and_over(start):
  env, tasks = start("textworld_express", params="numLocations=1")
  task = tasks.panel("train", 1)[0]
  first = env.reset(task, 0)
  assert "coin" in first.observation
  assert first.info["commands"] == sorted(first.info["commands"])
  assert {"look around", "take coin"} <= set(first.info["commands"])
  refused = env.step("xyzzy")
  assert refused.info["invalid"]
  assert refused.reward == pytest.approx(-0.1)
  # A look costs a step of ours and ends nothing of theirs, however many.
  assert not any(env.step("look around").terminated for _ in range(120))
  out = env.step("take coin")
  assert (out.reward, out.terminated, out.info["won"]) == (1.0, True, True)
  with pytest.raises(RuntimeError, match="no game is under way"):
    env.step("look around")


def test_a_game_is_chosen_among_those_there_are(start):
  with pytest.raises(ValueError, match=r"game='chess' is none of arithmetic"):
    start("textworld_express", game="chess")
  with pytest.raises(ValueError, match=r"tasks='fly' is none of boil"):
    start("scienceworld", tasks="fly")
  with pytest.raises(ValueError, match="game='Chess-v9' cannot be made"):
    start("textarena", game="Chess-v9")
  env, tasks = start("textarena", game="QuantumTicTacToe-v0")
  with pytest.raises(ValueError, match="'QuantumTicTacToe-v0' is for more"):
    env.reset(tasks.panel("train", 1)[0], 0)
  with pytest.raises(ValueError, match=r"sets='sums' is none of .*gcd"):
    start("reasoning_gym", sets="sums")


def test_science_pays_differences_and_a_lost_game_pays_back(start):
  env, tasks = start("scienceworld")
  task = tasks.panel("train", 1)[0]
  first = env.reset(task, 0)
  # The room it begins in has earned 8 of 100 before anything was done.
  assert first.reward == 0.0
  assert first.info["scores"]["score"] == 0.08
  refused = env.step("xyzzy")
  assert refused.info["invalid"]
  assert not env.step("look around").info["invalid"]
  moved = env.step("go to greenhouse")
  assert moved.reward == pytest.approx(0.09)
  assert "commands" not in moved.info
  env, tasks = start("scienceworld", tasks="boil")
  env.reset(tasks.panel("train", 1)[0], 0)
  env.step("go to kitchen")
  lost = env.step("focus on agent")
  assert lost.terminated
  assert not lost.info["won"]
  # The package says -100; what was earned is paid back, and no more.
  assert lost.reward <= 0.0
  assert lost.info["scores"]["score"] == 0.0


def test_splits_of_science_are_the_packages_variations(start):
  env, tasks = start("scienceworld", tasks=["boil", "find-living-thing"])
  seen = {}
  for split in ("train", "valid_seen", "valid_unseen"):
    for task in tasks.panel(split, 6):
      env.reset(task, 0)
      inner = env._env
      seen.setdefault(split, set()).add((inner.taskName, inner.variationIdx))
  assert all(len(s) == 6 for s in seen.values())
  assert not set.intersection(*seen.values())
  assert {name for name, _ in seen["train"]} == {"boil", "find-living-thing"}


def test_a_number_is_guessed_and_paid_for_at_the_end(start):
  env, tasks = start("textarena", game="GuessTheNumber-v0")
  paid = []
  for task in tasks.panel("train", 4):
    first = env.reset(task, 0)
    assert "between 1 and 20" in first.observation
    low, high = 1, 20
    while True:
      middle = (low + high) // 2
      out = env.step(f"[{middle}]")
      assert "[Player]" not in out.observation
      if out.terminated:
        break
      assert out.reward == 0.0
      low, high = (
        (middle + 1, high) if "higher" in out.observation else (low, middle - 1)
      )
    paid.append((out.reward, out.info["won"]))
  assert paid == [(1.0, True)] * 4
  env.reset(tasks.panel("train", 1)[0], 0)
  refused = env.step("seven")
  assert refused.info["invalid"]
  assert refused.reward == pytest.approx(-0.1)
  assert not env.step("[1]").info["invalid"]


@pytest.mark.parametrize(
  "game", ["Countdown-v0", "Cryptarithm-v0", "Slitherlink-v0"]
)
def test_a_reward_that_is_a_text_is_none(start, game):
  env, tasks = start("textarena", game=game)
  env.reset(tasks.panel("train", 1)[0], 0)
  env.step("nonsense")
  out = env.step("nonsense")
  assert out.terminated
  assert out.reward == pytest.approx(-0.1)


def test_games_side_by_side_draw_as_they_do_alone(start):
  env, tasks = start("textarena", game="2048-v0")
  other, _ = start("textarena", game="2048-v0")
  one, two = tasks.panel("train", 2)
  moves = ["[Left]", "[Up]", "[Right]", "[Down]"] * 3
  env.reset(one, 0)
  alone = [env.step(m).observation for m in moves]
  before = random.getstate()
  env.reset(one, 0)
  other.reset(two, 0)
  beside = []
  for move in moves:
    beside.append(env.step(move).observation)
    other.step(move)
  assert beside == alone
  assert random.getstate() == before


def test_wrong_answers_are_paid_for_on_demand_alone(start):
  env, tasks = start("reasoning_gym", sets="fraction_simplification")
  task = tasks.panel("train", 1)[0]
  first = env.reset(task, 0)
  answer = env._asked[1]["answer"]
  assert (out := env.step(answer)).terminated
  assert (out.reward, out.info["won"]) == (1.0, True)
  env.reset(task, 0)
  assert (out := env.step("zq")).terminated
  assert (out.reward, out.info["won"]) == (0.0, False)
  env, _ = start(
    "reasoning_gym", sets="fraction_simplification", partial_credit=True
  )
  assert env.reset(task, 0).observation == first.observation
  out = env.step("zq")
  assert 0 < out.reward < 1
  assert not out.info["won"]


def test_what_pays_for_nonsense_or_cannot_read_it_is_caught(start):
  with pytest.raises(ValueError, match="game_of_life_halting pays in full"):
    start("reasoning_gym", sets="game_of_life_halting")
  env, tasks = start("reasoning_gym", sets="prime_factorization")
  env.reset(tasks.panel("train", 1)[0], 0)
  out = env.step("two times three")
  assert out.info["invalid"]
  assert (out.reward, out.terminated) == (pytest.approx(-0.1), True)


def test_a_grid_is_told_as_the_package_draws_it(start):
  env, tasks = start("minigrid", id="BabyAI-GoToObj-v0")
  for task in tasks.panel("train", 6):
    out = env.reset(task, 0)
    for command in ("turn left", "turn left", "go forward", "turn right"):
      inner = env._env.unwrapped
      ahead = np.array(inner.dir_vec)
      right = np.array(inner.right_vec)
      for x in range(inner.width):
        for y in range(inner.height):
          thing = inner.grid.get(x, y)
          if thing is None or thing.type == "wall":
            continue
          gap = np.array([x, y]) - inner.agent_pos
          forward, aside = int(gap @ ahead), int(gap @ right)
          side = f", {abs(aside)} {'left' if aside < 0 else 'right'}"
          told = f"a {thing.color} {thing.type} {forward} ahead"
          told += side if aside else ""
          assert (told in out.observation) == inner.in_view(x, y)
      out = env.step(command)
      if out.terminated:
        break
  out = env.reset(task, 0)
  assert out.info["commands"][0] == "drop"
  refused = env.step("jump")
  assert refused.info["invalid"]
  assert refused.observation.endswith(out.observation)


def test_the_bot_of_grids_wins_what_it_demonstrates(start):
  env, _ = start("minigrid")
  expert = experts.get("minigrid")
  for number in range(20):
    task = expert.worlds.generate(number, split="train", size="small")
    played = experts.play(task, env, expert.plan(task), wins=True)
    assert played.rewards[-1] > 0.5


def test_a_key_is_carried_and_a_door_is_opened(start):
  env, tasks = start("minigrid", id="BabyAI-UnlockLocal-v0")
  seen = " ".join(
    env.reset(task, 0).observation for task in tasks.panel("train", 20)
  )
  assert "locked" in seen
  env, tasks = start("minigrid", id="BabyAI-PickupLoc-v0")
  out = env.reset(tasks.panel("train", 1)[0], 0)
  rng = np.random.default_rng(0)
  for _ in range(400):
    out = env.step(str(rng.choice(["go forward", "turn left", "pick up"])))
    if "You carry a " in out.observation or out.terminated or out.truncated:
      break
  assert "You carry a " in out.observation or out.info["won"]


def test_a_java_that_dies_costs_its_episode_and_the_next_is_played():
  recipes = parts("textworld_express", games=1)
  env = recipes.env.make()
  tasks = recipes.tasks.make().panel("train", 3)
  episodes = [loop.Episode(t.uid, t, 0, (0, i)) for i, t in enumerate(tasks)]
  made = [env]

  def make():
    made.append(recipes.env.make())
    return made[-1]

  said = []

  def answer(uid, turn):
    said.append(uid)
    if len(said) == 2:
      made[-1]._env._gateway.java_process.kill()
    return "look around"

  limits = dataclasses.replace(worlds.ROLLOUT, max_live=1, max_steps=3)
  limits = dataclasses.replace(limits, max_tokens=4096)
  prompt = prompt_base.CompactPrompt(worlds.tokenizer())
  done = loop.run(worlds.ScriptedEngine(answer), make, episodes, prompt, limits)
  errors = [t.error for t in done]
  assert errors[0]
  assert errors[0].startswith("Py4J")
  assert errors[1:] == [None, None]
  env.close()


def test_a_java_that_hangs_costs_a_worker_and_no_more():
  recipes = parts("textworld_express", games=1)
  task = recipes.tasks.make().panel("train", 1)[0]
  limits = workers_options.WorkerLimits(step_s=3.0)
  with pool.Workers(recipes.env, 1, limits) as workers:
    env = workers()
    env.reset(task, 0)
    own = subprocess.run(
      ["pgrep", "-f", "java.*textworld-express"], capture_output=True, text=True
    ).stdout.split()
    mine = [int(p) for p in own if os.getsid(int(p)) != os.getsid(0)]
    for pid in mine:
      os.kill(pid, signal.SIGSTOP)
    with pytest.raises(base.EnvTimeout):
      env.step("look around")
    env.close()
    again = workers()
    assert not again.reset(task, 0).terminated
    again.close()


@pytest.mark.parametrize("name", list(WORLDS))
def test_a_rollout_of_each_with_its_speed_and_memory(name):
  recipes = parts(name)
  tasks = recipes.tasks.make().sample(6, seed=0, update=0)
  episodes = [loop.Episode(t.uid, t, 0, (0, i)) for i, t in enumerate(tasks)]
  commands = WORLDS[name][1]
  engine = worlds.ScriptedEngine(lambda _, turn: commands[turn % len(commands)])
  at_once = recipes.env.at_once() or 4
  limits = dataclasses.replace(
    worlds.ROLLOUT, max_live=at_once, max_steps=20, max_tokens=65536
  )
  prompt = prompt_base.CompactPrompt(worlds.tokenizer())
  workers = pool.Workers(
    recipes.env, at_once, workers_options.WorkerLimits(reset_s=120, step_s=60)
  )
  with workers:
    limits = dataclasses.replace(limits, env_threads=at_once)
    began = time.monotonic()
    done = loop.run(engine, workers, episodes, prompt, limits)
    seconds = time.monotonic() - began
  assert [t.error for t in done] == [None] * 6
  steps = sum(len(t.steps) for t in done)
  env = recipes.env.make()
  env.reset(tasks[0], 0)
  began, count = time.monotonic(), 0
  while time.monotonic() < began + 5:
    out = env.step(commands[count % len(commands)])
    count += 1
    if out.terminated or out.truncated:
      env.reset(tasks[count % 6], 0)
  rate = count / (time.monotonic() - began)
  below = subprocess.run(
    ["ps", "-o", "rss=,comm=", "--ppid", str(os.getpid())],
    capture_output=True, text=True,
  ).stdout.splitlines()  # fmt: skip
  java = [f"{int(x.split()[0]) / 1024:.0f}" for x in below if "java" in x]
  env.close()
  print(
    f"\n{name}: {steps} steps in {seconds:.1f} s with {at_once} workers, one "
    f"alone {rate:.0f} steps a second, Java of {java} MiB"
  )


def test_two_updates_on_coins(tmp_path):
  options = small_runs.small_config(
    tmp_path,
    num_updates=2,
    tasks_per_update=4,
    env=config.EnvConfig(
      name="textworld_express",
      options=("game=coin", "params=numLocations=1", "games=2"),
      workers=2,
    ),
    rollout=dataclasses.replace(
      worlds.ROLLOUT, max_steps=3, max_tokens=1536, env_threads=2
    ),
    sampler=sampler_options.SamplerConfig(
      num_slots=2, prefill_lengths=(64, 1024)
    ),
    packing=packing_options.PackingConfig(row_length=1536),
    evaluation=config.EvalConfig(every=2, episodes=4),
  )
  folder = small_runs.run(options)
  lines = metrics.read_jsonl(folder / "metrics.jsonl")
  assert [line["update"] for line in lines] == [0, 1, 2]
  assert all(line["rollout/error_share"] == 0 for line in lines[1:])
  assert lines[-1]["rollout/episodes"] == 4
