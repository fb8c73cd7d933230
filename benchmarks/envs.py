"""Speed and memory of the four environments on one core.

  python benchmarks/envs.py [--quick] [--data-dir DIR]

An episode is a reset and steps at random: 50 admissible commands in a household
game, 15 calls in a shop (a search is for four words of the task), 5 searches
for the questions of the tasks in the other two. A step includes observation,
admissible commands, anchor, scores and its part of the reset. `searches_per_s`
is the index alone. "256" means 256 environments with an episode each, stepped
in turn; `kib_per_env` is what one of them adds. Times are CPU seconds of this
process, so that other work on the machine disturbs them little. The last line
is one JSON object with every number.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.table

from steppo_jax.envs.household import alfworld
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import worlds as household_worlds
from steppo_jax.envs.papers import env as papers_env
from steppo_jax.envs.papers import library as papers_library
from steppo_jax.envs.papers import worlds as papers_worlds
from steppo_jax.envs.questions import data as questions_data
from steppo_jax.envs.questions import env as questions_env
from steppo_jax.envs.questions import worlds as questions_worlds
from steppo_jax.envs.retrieval import bm25, fts
from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import pages as webshop_pages
from steppo_jax.envs.webshop import worlds as webshop_worlds

_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
_AT_ONCE = 256
_PANEL = 200


class Case(NamedTuple):
  """An environment with tasks.

  Attributes:
    make: Makes one environment.
    tasks: What it is reset to.
    act: Gives the next action: (random, task, last time step).
    steps: Of an episode.
    search: Searches the index for a task, without an environment.
  """

  make: Callable[[], Any]
  tasks: list
  act: Callable
  steps: int
  search: Callable | None = None


def rate(work, least_s):
  """Calls `work` until `least_s` CPU seconds are over; units a second."""
  count, start = 0, time.process_time()
  while (spent := time.process_time() - start) < least_s:
    count += work()
  return round(count / spent)


def _command(rng, task, step):
  del task
  return rng.choice(step.info["commands"])


def _shop_call(rng, task, step):
  call = rng.choice(step.info["commands"])
  if call == webshop_pages.SEARCH:
    words = bm25.words(task.payload["instruction"])
    call = f"search[{' '.join(rng.sample(words, min(4, len(words))))}]"
  return call


def _question(tasks):
  """Searches for the questions of all tasks in turn."""
  turn = itertools.cycle(f"<search>{t.payload['question']}</search>"
                         for t in tasks)  # fmt: skip
  return lambda rng, task, step: next(turn)


def measure(case, least_s):
  """Numbers of one case."""
  rng, env = random.Random(0), case.make()
  scores, wins = [], []

  def episode():
    task = rng.choice(case.tasks)
    step, count = env.reset(task, 0), 0
    while count < case.steps and not step.terminated:
      step, count = env.step(case.act(rng, task, step)), count + 1
    scores.append(step.info.get("scores", {}))
    wins.append(step.info["won"])
    return count

  def reset():
    env.reset(rng.choice(case.tasks), 0)
    return 1

  out = {
    "steps_per_s": rate(episode, least_s),
    "steps_per_s_256": _many(case, least_s),
    "resets_per_s": rate(reset, least_s),
    "random_success": round(sum(wins) / len(wins), 4),
  }
  if "official" in scores[0]:
    mean = sum(s["official"] for s in scores) / len(scores)
    out["random_score"] = round(mean, 3)
  if case.search is not None:
    turn = itertools.cycle(case.tasks)

    def search():
      case.search(next(turn))
      return 1

    out["searches_per_s"] = rate(search, least_s)
  out["kib_per_env"] = _memory(case)
  return out


def _many(case, least_s):
  """Steps/s of 256 environments, each at another place of its episode."""
  rng = random.Random(0)
  envs = [case.make() for _ in range(_AT_ONCE)]
  turn = itertools.cycle(case.tasks)
  live = []
  for number, env in enumerate(envs):
    task = next(turn)
    live.append([env, task, env.reset(task, 0), number % case.steps])

  def round_():
    for place in live:
      env, task, step, left = place
      if step.terminated or not left:
        task = place[1] = next(turn)
        step, left = env.reset(task, 0), case.steps
      place[2:] = env.step(case.act(rng, task, step)), left - 1
    return len(live)

  return rate(round_, least_s)


def _memory(case):
  """KiB that one of 256 environments adds, each a step into an episode."""
  rng = random.Random(0)
  case.make().reset(case.tasks[0], 0)
  tracemalloc.start()
  envs = [case.make() for _ in range(_AT_ONCE)]
  for env, task in zip(envs, itertools.cycle(case.tasks), strict=False):
    env.step(case.act(rng, task, env.reset(task, 0)))
  size, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  return round(size / _AT_ONCE / 1024, 1)


def plans(tasks, least_s):
  """Shortest plans of household games, a second."""
  turn, env = itertools.cycle(tasks), household.HouseholdEnv()

  def work():
    env.reset(next(turn), 0)
    env.game.plan()
    return 1

  return rate(work, least_s)


def _generated(worlds, size, least_s):
  """Tasks of a size, and how many are made a second."""
  numbers = itertools.count()

  def work():
    worlds.generate(next(numbers), split="train", size=size)
    return 1

  made = [worlds.generate(n, split="train", size=size) for n in range(_PANEL)]
  return made, rate(work, least_s)


_GENERATED = {
  "household": (household.HouseholdEnv, household_worlds, 50),
  "webshop": (webshop_env.WebShopEnv, webshop_worlds, 15),
  "search_qa": (questions_env.SearchQAEnv, questions_worlds, 5),
  "paper_search": (papers_env.PaperSearchEnv, papers_worlds, 5),
}


def generated(name, size, least_s):
  """Numbers of an environment on its generated worlds."""
  make, worlds, steps = _GENERATED[name]
  tasks, per_s = _generated(worlds, size, least_s)
  act = {"household": _command, "webshop": _shop_call}.get(name)
  found = measure(Case(make, tasks, act or _question(tasks), steps), least_s)
  if name == "household":
    found["plans_per_s"] = plans(tasks, least_s)
  return found | {"generated_per_s": per_s}


def real_games(folder, least_s):
  tasks = alfworld.load_tasks(folder, "valid_seen")
  case = Case(household.HouseholdEnv, tasks, _command, 50)
  return measure(case, least_s) | {"plans_per_s": plans(tasks, least_s)}


def real_shop(folder, least_s):
  tasks = webshop_env.load_tasks(folder, "train", by="index")
  env = webshop_env.WebShopEnv()
  env.reset(tasks[0], 0)
  catalog = env.visit.catalog
  search = lambda t: catalog.search(bm25.words(t.payload["instruction"]))
  return measure(
    Case(webshop_env.WebShopEnv, tasks, _shop_call, 15, search), least_s
  )


def real_questions(folder, least_s):
  tasks = questions_data.load_tasks(folder, "validation")
  tasks += questions_data.load_tasks(folder, "train")
  corpus = questions_data.open_corpus(folder, stop_words=True)
  case = Case(
    lambda: questions_env.SearchQAEnv(data_dir=folder),
    tasks,
    _question(tasks),
    5,
    lambda t: corpus.retriever.search(t.payload["question"], 10),
  )
  out = {"documents": len(corpus.documents), **measure(case, least_s)}
  with tempfile.TemporaryDirectory() as place:
    path = pathlib.Path(place) / "index.sqlite"
    fts.build(path, questions_data.load_corpus(folder))
    index = fts.open_corpus(path)
    turn = itertools.cycle(tasks)

    def search():
      index.retriever.search(next(turn).payload["question"], 10)
      return 1

    out["disk_searches_per_s"] = rate(search, least_s)
  return out


def real_papers(folder, least_s):
  tasks = papers_library.load_tasks(folder, "auto_test")
  library = papers_library.open_library(folder)
  case = Case(
    lambda: papers_env.PaperSearchEnv(data_dir=folder),
    tasks,
    _question(tasks),
    5,
    lambda t: library.search(t.payload["question"], 10),
  )
  return {"documents": len(library.papers), **measure(case, least_s)}


_REAL = {
  "alfworld": ("alfworld", real_games),
  "webshop": ("webshop", real_shop),
  "search_qa": ("hotpotqa", real_questions),
  "paper_search": ("paper_search", real_papers),
}


# What every case has, and what the table calls it.
_COLUMNS = {
  "steps_per_s": "steps/s",
  "steps_per_s_256": "with 256",
  "resets_per_s": "resets/s",
  "searches_per_s": "searches/s",
  "kib_per_env": "KiB",
}


def show(result):
  """Prints the numbers that all have, a row a case, and then the others."""
  table = rich.table.Table(box=rich.box.SIMPLE)
  table.add_column("", no_wrap=True)
  for column in _COLUMNS.values():
    table.add_column(column, justify="right")
  for name, numbers in result.items():
    if "steps_per_s" in numbers:
      cells = [f"{numbers[c]:,}" if c in numbers else "" for c in _COLUMNS]
      table.add_row(name, *cells)
  rich.console.Console().print(table)
  for name, numbers in result.items():
    others = {k: v for k, v in numbers.items() if k not in _COLUMNS}
    words = ", ".join(f"{key} {value:,}" for key, value in others.items())
    print(f"{name}: {words}")


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="small worlds alone")
  parser.add_argument(
    "--data-dir",
    default=os.environ.get("STEPPO_DATA_DIR", str(_DATA)),
    help="folder with alfworld/, webshop/, hotpotqa/ and paper_search/",
  )
  args = parser.parse_args()
  least_s = 0.1 if args.quick else 1.0
  result = {}
  for name, (_, worlds, _) in _GENERATED.items():
    for size in ["small"] if args.quick else worlds.SIZES:
      result[f"{name} {size}"] = generated(name, size, least_s)
  for name, (folder, numbers) in _REAL.items():
    place = pathlib.Path(args.data_dir) / folder
    if place.is_dir():
      result[f"{name} real"] = numbers(place, least_s)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  result["process"] = {"peak_mib": round(peak / 1024)}
  show(result)
  print(json.dumps(result))


if __name__ == "__main__":
  main()
