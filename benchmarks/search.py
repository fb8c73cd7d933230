"""Speed and memory of question answering and paper search on one core.

  python benchmarks/search.py [--quick] [--data-dir DIR]

`searches_per_s` is the index alone; `env_searches_per_s` includes what a step
does besides (parse, show, score) and the resets of episodes of five steps.
Times are CPU seconds of
this process, so that other work on the machine disturbs them little. The last
line is one JSON object with every number.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import tempfile
import time
import tracemalloc

from steppo_jax.envs import (
  paper_library,
  paper_search,
  paper_worlds,
  search_data,
  search_fts,
  search_qa,
  search_worlds,
)

_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def _rate(work, least_s):
  """Calls `work` until `least_s` CPU seconds are over; units a second."""
  count, start = 0, time.process_time()
  while (spent := time.process_time() - start) < least_s:
    count += work()
  return round(count / spent)


def measure(env, tasks, least_s):
  """Searches through the environment and resets, a second.

  An episode is one reset and five steps of one search each, as in the paper;
  queries are the questions of the tasks in turn.
  """
  turn = itertools.cycle(tasks)
  actions = itertools.cycle(
    f"<search>{task.payload['question']}</search>" for task in tasks
  )

  def episode():
    env.reset(next(turn), 0)
    for _ in range(5):
      env.step(next(actions))
    return 5

  def reset():
    env.reset(next(turn), 0)
    return 1

  return {
    "env_searches_per_s": _rate(episode, least_s),
    "resets_per_s": _rate(reset, least_s),
  }


def _searches(search, tasks, least_s):
  """Searches/s of a retriever or library alone."""
  turn = itertools.cycle(tasks)

  def work():
    search(next(turn).payload["question"], 10)
    return 1

  return _rate(work, least_s)


def generated(env, worlds, least_s):
  """Numbers of one environment on its generated worlds, by size."""
  out = {}
  for size in worlds.SIZES:
    numbers = itertools.count()

    def make(numbers=numbers, size=size):
      worlds.generate(next(numbers), split="train", size=size)
      return 1

    rate = _rate(make, least_s)
    tasks = [worlds.generate(n, split="train", size=size) for n in range(32)]
    out[size] = {"generated_per_s": rate, **measure(env, tasks, least_s)}
  return out


def memory_of_256(make, tasks):
  """KiB that one of 256 environments adds, each in an episode of its own."""
  make().reset(tasks[0], 0)
  tracemalloc.start()
  envs = [make() for _ in range(256)]
  for env, task in zip(envs, itertools.cycle(tasks), strict=False):
    env.reset(task, 0)
    env.step(f"<search>{task.payload['question']}</search>")
  size, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  return round(size / 256 / 1024, 1)


def real_questions(folder, least_s):
  tasks = search_data.load_tasks(folder, "validation")
  tasks += search_data.load_tasks(folder, "train")
  make = lambda: search_qa.SearchQAEnv(data_dir=folder)
  corpus = search_data.open_corpus(folder, stop_words=True)
  out = {
    "paragraphs": len(corpus.documents),
    "searches_per_s": _searches(corpus.retriever.search, tasks, least_s),
    **measure(make(), tasks, least_s),
    "kib_per_env": memory_of_256(make, tasks),
  }
  with tempfile.TemporaryDirectory() as place:
    path = pathlib.Path(place) / "index.sqlite"
    search_fts.build(path, search_data.load_corpus(folder))
    index = search_fts.open_corpus(path)
    out["fts_searches_per_s"] = _searches(
      index.retriever.search, tasks, least_s
    )
  return out


def real_papers(folder, least_s):
  tasks = paper_library.load_tasks(folder, "auto_test")
  make = lambda: paper_search.PaperSearchEnv(data_dir=folder)
  library = paper_library.open_library(folder)
  return {
    "papers": len(library.papers),
    "searches_per_s": _searches(library.search, tasks, least_s),
    **measure(make(), tasks, least_s),
    "kib_per_env": memory_of_256(make, tasks),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="about 5 seconds")
  parser.add_argument(
    "--data-dir",
    default=os.environ.get("STEPPO_DATA_DIR", str(_DATA)),
    help="folder that holds hotpotqa/ and paper_search/",
  )
  args = parser.parse_args()
  least_s = 0.2 if args.quick else 2.0
  result = {}
  for name, env, worlds in (
    ("search_qa", search_qa.SearchQAEnv(), search_worlds),
    ("paper_search", paper_search.PaperSearchEnv(), paper_worlds),
  ):
    for size, numbers in generated(env, worlds, least_s).items():
      result[f"{name} {size}"] = numbers
  folder = pathlib.Path(args.data_dir)
  if (folder / "hotpotqa").is_dir():
    result["hotpotqa"] = real_questions(folder / "hotpotqa", least_s)
  if (folder / "paper_search").is_dir():
    result["autoscholar"] = real_papers(folder / "paper_search", least_s)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  result["process"] = {"peak_mib": round(peak / 1024)}
  for name, numbers in result.items():
    words = ", ".join(f"{key} {value:,}" for key, value in numbers.items())
    print(f"{name}: {words}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
