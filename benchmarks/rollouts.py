"""Rollouts of this build and of an earlier one, in turn.

  python benchmarks/rollouts.py [--quick] [--commit ffc004e] [--case NAME ...]

Two kinds of work for the sampler, with random weights: "household", where
episodes of 5 to 15 steps come and go, each step shows some ten tokens and
answers with three to eight, as in the household games; and "turns", where
sessions in groups of four stay for 20 turns of 60 shown and 20 sampled tokens.
A worker of each build plays every case once to compile, and then both play in
turn, round by round. `over_before` is by case the earlier build's seconds
divided by this one's, least of the rounds by least, `cpu_over_before` the same
of CPU seconds, which other processes disturb less; `same_ids` tells whether
both sampled the same tokens. The last line is one JSON object.
"""

import argparse
import json
import time

import builds
import numpy as np

# Model, layers (0 for all), sessions.
CASES = {
  "household small": ("household", "small", 0, 128),
  "household 20M": ("household", "base_20m", 0, 32),
  "household 135M": ("household", "smollm2_135m", 0, 16),
  "turns 20M": ("turns", "base_20m", 0, 8),
  "turns 135M": ("turns", "smollm2_135m", 0, 8),
}
QUICK = {
  "household small": ("household", "small", 0, 16),
  "turns micro": ("turns", "micro", 0, 8),
}
SMALLEST = {"household nano": ("household", "nano", 1, 2)}
SHOWN, SAMPLED, TURNS, GROUP = 60, 20, 20, 4
_engines = {}


def request(session, prompt, key, new):
  from steppo_jax import types

  return types.Request(session, np.asarray(prompt, np.int32), key, new, 1.0)


def household(engine, slots):
  """Twice as many episodes as slots, a new one for each that has ended."""
  lengths = np.random.default_rng(0)
  left = [
    (f"e{n}", int(lengths.integers(5, 16)), lengths.integers(3, 512, 40))
    for n in range(2 * slots)
  ][::-1]
  live, answers = {}, []

  def ask(name):
    steps, prompt, rng = live[name]
    key = int(name[1:]), steps
    engine.submit([request(name, prompt, key, int(rng.integers(3, 9)))])

  while left or live:
    while left and len(live) < slots:
      name, steps, prompt = left.pop()
      live[name] = (steps, prompt, np.random.default_rng(int(name[1:])))
      ask(name)
    for asked, response in engine.poll():
      name = asked.session
      steps, prompt, rng = live[name]
      answers.append((name, steps, response.response_ids.tolist()))
      shown = rng.integers(3, 512, int(rng.integers(4, 16)))
      prompt = np.concatenate([prompt, response.response_ids, shown])
      live[name] = (steps - 1, prompt, rng)
      if steps > 1:
        ask(name)
      else:
        engine.release(name)
        del live[name]
  return answers


def turns(engine, slots):
  """Sessions that stay, all asked at once turn after turn."""
  rng = np.random.default_rng(0)
  tasks = rng.integers(3, 512, (max(1, slots // GROUP), SHOWN))
  prompts = list(np.repeat(tasks, GROUP, axis=0)[:slots])
  answers = []
  for turn in range(TURNS):
    found = engine.generate(
      [request(str(n), p, (n, turn), SAMPLED) for n, p in enumerate(prompts)]
    )
    answers += [response.response_ids.tolist() for response in found]
    prompts = [
      np.concatenate([p, r.response_ids, rng.integers(3, 512, SHOWN)])
      for p, r in zip(prompts, found, strict=True)
    ]
  for n in range(slots):
    engine.release(str(n))
  return answers


def play(kind, model, layers, slots):
  """Worker: seconds of one case, programs, and a digest of the tokens."""
  key = kind, model, layers, slots
  if key not in _engines:
    context = {"household": 320, "turns": TURNS * (SHOWN + SAMPLED)}[kind]
    _engines[key] = builds.make_engine(
      model, layers, slots=slots, context=context, max_new_tokens=SAMPLED
    )
  engine = _engines[key]
  wall, cpu = time.perf_counter(), time.process_time()
  answers = {"household": household, "turns": turns}[kind](engine, slots)
  return {
    "seconds": time.perf_counter() - wall,
    "cpu": time.process_time() - cpu,
    "programs": engine.compiles,
    # Some answers come in another order from one build to another.
    "ids": sorted(answers),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="small models")
  parser.add_argument("--smallest", action="store_true", help="one, for tests")
  parser.add_argument("--commit", default=builds.EARLIER)
  parser.add_argument("--case", nargs="+", choices=sorted(CASES))
  parser.add_argument("--layers", type=int, default=0, help="of every model")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--worker", action="store_true", help="used by itself")
  args = parser.parse_args()
  if args.worker:
    builds.serve(play)
    return
  cases = SMALLEST if args.smallest else QUICK if args.quick else CASES
  if args.case:
    cases = {name: CASES[name] for name in args.case}
  result = {"commit_before": args.commit, "over_before": {}}
  result |= {"cpu_over_before": {}, "same_ids": {}, "cases": {}}
  with builds.worktree(args.commit) as before:
    workers = {
      name: builds.Worker(__file__, build)
      for name, build in (("before", before), ("now", builds.ROOT))
    }
    for case, (kind, model, layers, slots) in cases.items():
      found = {"before": [], "now": []}
      for _ in range(1 + args.rounds):
        for name, worker in workers.items():
          found[name].append(
            worker.ask(
              kind=kind, model=model, layers=args.layers or layers, slots=slots
            )
          )
      least = {
        name: {
          "seconds": min(x["seconds"] for x in of[1:]),
          "cpu": min(x["cpu"] for x in of[1:]),
          "first": of[0]["seconds"],
          "programs": of[-1]["programs"],
        }
        for name, of in found.items()
      }
      was, now = least["before"], least["now"]
      result["over_before"][case] = was["seconds"] / now["seconds"]
      result["cpu_over_before"][case] = was["cpu"] / now["cpu"]
      ids = [of[-1]["ids"] for of in found.values()]
      same = [x == y for x, y in zip(*ids, strict=True)]
      result["same_ids"][case] = sum(same) / len(same)
      result["cases"][case] = least
      print(case, {k: result[k][case] for k in ("over_before", "same_ids")},
            least, flush=True)  # fmt: skip
    for worker in workers.values():
      worker.close()
  print(json.dumps(result))


if __name__ == "__main__":
  main()
