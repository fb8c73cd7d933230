"""Speed of the household games and of the shop on one core.

  python benchmarks/envs.py [--quick] [--data-dir DIR]

Steps are random admissible commands, and each includes the observation, the win
flag and the list of admissible commands; in the shop, a search is for four
words of the task, and an episode ends after 15 steps. Times are CPU seconds of
this process, so that other work on the machine disturbs them little. The last
line is one JSON object with every number.
"""

import argparse
import json
import os
import pathlib
import random
import time
import tracemalloc

from steppo_jax.envs import (
  alfworld,
  bm25,
  household,
  household_worlds,
  webshop,
  webshop_pages,
  webshop_worlds,
)

_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def _rate(work, least_s):
  """Calls `work` until `least_s` CPU seconds are over; units a second."""
  count, start = 0, time.process_time()
  while (spent := time.process_time() - start) < least_s:
    count += work()
  return count / spent


def measure(tasks, least_s):
  """Steps/s, environment steps/s, resets/s and plans/s on some tasks."""
  rng = random.Random(0)
  games = [
    household.Game.from_compact(
      task.payload["game"], task.payload["task"], dialect="move"
    )
    for task in tasks
  ]
  env = household.HouseholdEnv()

  def steps():
    game = rng.choice(games)
    game.reset()
    commands = game.admissible_commands
    for _ in range(50):
      game.step(rng.choice(commands))
      commands, _ = game.admissible_commands, game.won
    return 50

  def env_steps():
    env.reset(rng.choice(tasks), 0)
    commands = env.admissible_commands
    for _ in range(50):
      env.step(rng.choice(commands))
      commands = env.admissible_commands
    return 50

  def resets():
    env.reset(rng.choice(tasks), 0)
    return 1

  def plans():
    game = rng.choice(games)
    game.reset()
    game.plan()
    return 1

  return {
    "steps_per_s": round(_rate(steps, least_s)),
    "env_steps_per_s": round(_rate(env_steps, least_s)),
    "resets_per_s": round(_rate(resets, least_s)),
    "plans_per_s": round(_rate(plans, least_s)),
  }


def measure_shop(tasks, least_s):
  """Steps/s, resets/s, searches/s, the level of chance, KiB an environment."""
  rng = random.Random(0)
  env = webshop.WebShopEnv()
  scores, wins = [], []

  def play(env, most=15):
    task = rng.choice(tasks)
    words = bm25.words(task.payload["instruction"])
    step, count = env.reset(task, 0), 0
    while count < most and not step.terminated:
      call = rng.choice(step.info["commands"])
      if call == webshop_pages.SEARCH:
        call = f"search[{' '.join(rng.sample(words, min(4, len(words))))}]"
      step, count = env.step(call), count + 1
    scores.append(env.score)
    wins.append(env.won)
    return count

  def resets():
    env.reset(rng.choice(tasks), 0)
    return 1

  def searches():
    env.reset(rng.choice(tasks), 0)
    goal = env.visit.goal
    env.visit.catalog.search(bm25.words(goal.instruction))
    return 1

  steps_per_s = round(_rate(lambda: play(env), least_s))
  result = {
    "env_steps_per_s": steps_per_s,
    "resets_per_s": round(_rate(resets, least_s)),
    "searches_per_s": round(_rate(searches, least_s)),
    "random_score": round(sum(scores) / len(scores), 3),
    "random_success": round(sum(wins) / len(wins), 4),
  }
  tracemalloc.start()
  crowd = [webshop.WebShopEnv() for _ in range(256)]
  for one in crowd:
    play(one, 5)
  size, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  return {**result, "kib_per_env": round(size / 1024 / len(crowd), 1)}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="about 5 seconds")
  parser.add_argument(
    "--data-dir",
    default=os.environ.get("STEPPO_DATA_DIR", str(_DATA)),
    help="folder that holds alfworld/ and webshop/",
  )
  args = parser.parse_args()
  least_s = 0.2 if args.quick else 3.0
  result = {}
  for size in household_worlds.SIZES:
    seeds = iter(range(1_000_000))

    def generate(seeds=seeds, size=size):
      household_worlds.generate(next(seeds), split="train", size=size)
      return 1

    rate = round(_rate(generate, least_s))
    tasks = [
      household_worlds.generate(seed, split="train", size=size)
      for seed in range(100)
    ]
    result[size] = {"generated_per_s": rate, **measure(tasks, least_s)}
  real = pathlib.Path(args.data_dir) / "alfworld"
  if real.is_dir():
    result["alfworld"] = measure(
      alfworld.load_tasks(real, "valid_seen"), least_s
    )
  tasks = [
    webshop_worlds.generate(seed, split="train", size="small")
    for seed in range(200)
  ]
  result["shop_small"] = measure_shop(tasks, least_s)
  real = pathlib.Path(args.data_dir) / "webshop"
  if real.is_dir():
    tasks = webshop.load_tasks(real, "train", by="index")
    result["webshop"] = measure_shop(tasks, least_s)
  for name, numbers in result.items():
    words = ", ".join(f"{key} {value:,}" for key, value in numbers.items())
    print(f"{name}: {words}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
