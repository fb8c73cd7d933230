"""What keeping the cache saves: a rollout of 20 turns, read once or anew.

  python benchmarks/turns.py [--quick] [--model NAME] [--plot FILE]

Sessions in groups of four that share their first prompt answer turn after turn;
at each turn new tokens come in and a fixed number is sampled. In the same run
the sampler keeps its slots, and for comparison reads every prompt anew, which
is what an engine without sessions does. Both answer the same. Times are medians
over repeats; the last line is one JSON object. Compare within one run only.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from steppo_jax import types
from steppo_jax.models import presets, transformer
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options
from steppo_jax.storage import folder as run_folder

VOCAB, GROUP, NEW, SAMPLED = 512, 4, 60, 20


def make_engine(model, slots, turns):
  """An engine whose responses never end by themselves."""
  engine = engine_lib.SlotEngine(
    model,
    options.SamplerConfig(num_slots=slots),
    context=-(-turns * (NEW + SAMPLED) // 64) * 64,
    max_new_tokens=SAMPLED,
    end_of_turn_id=-1,
    seed=0,
  )
  engine.set_params(transformer.init(model, jax.random.key(0)), 0)
  for keep in (True, False):  # compiles what will be needed
    play(engine, slots, turns, keep=keep)
  return engine


def play(engine, slots, turns, *, keep):
  """Seconds and tokens read of every turn, and the conversations."""
  rng = np.random.default_rng(0)
  tasks = rng.integers(3, VOCAB, (slots // GROUP, NEW))
  prompts = list(np.repeat(tasks, GROUP, axis=0).astype(np.int32))
  seconds, read = [], []
  for turn in range(turns):
    before = engine.counters.prefill_tokens
    if not keep:
      for n in range(slots):
        engine.release(str(n))
    start = time.perf_counter()
    # Greedy, so that both ways answer alike.
    answers = engine.generate(
      [
        types.Request(str(n), prompt, (n, turn), SAMPLED, 0.0)
        for n, prompt in enumerate(prompts)
      ]
    )
    seconds.append(time.perf_counter() - start)
    read.append(engine.counters.prefill_tokens - before)
    prompts = [
      np.concatenate([p, a.response_ids, rng.integers(3, VOCAB, NEW)])
      for p, a in zip(prompts, answers, strict=True)
    ]
  for n in range(slots):
    engine.release(str(n))
  return seconds, read, [p[:-NEW] for p in prompts]


def unique_prompt_tokens(conversations):
  """Tokens that have to be read: once a group, once a session, none sampled."""
  total = 0
  for n, ids in enumerate(conversations):
    turns = len(ids) // (NEW + SAMPLED)
    total += NEW * (turns - (n % GROUP > 0))
  return total


def plot(path, found):
  """Seconds by turn, kept and anew."""
  from matplotlib import figure

  drawn = figure.Figure(figsize=(5, 3), layout="constrained")
  axes = drawn.subplots()
  for name in ("kept", "anew"):
    axes.plot(range(1, len(found[name]) + 1), found[name], label=name)
  axes.set(xlabel="turn", ylabel="seconds", ylim=(0, None))
  axes.legend()
  drawn.savefig(path, dpi=120)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="fewer sessions")
  parser.add_argument(
    "--model", default="micro", choices=sorted(presets.PRESETS)
  )
  parser.add_argument("--plot", help="file for a plot of seconds by turn")
  args = parser.parse_args()
  slots, turns, repeats = (8, 20, 1) if args.quick else (32, 20, 3)
  engine = make_engine(presets.get(args.model, VOCAB), slots, turns)
  compiled = engine.compiles
  runs = {
    name: [
      play(engine, slots, turns, keep=name == "kept") for _ in range(repeats)
    ]
    for name in ("kept", "anew")
  }
  if engine.compiles != compiled:
    raise RuntimeError("the sampler compiled while it was measured")
  conversations = runs["kept"][0][2]
  same = [
    np.array_equal(a, b)
    for a, b in zip(conversations, runs["anew"][0][2], strict=True)
  ]
  by_turn = {
    name: [statistics.median(x) for x in zip(*(r[0] for r in of), strict=True)]
    for name, of in runs.items()
  }
  read = {name: sum(of[0][1]) for name, of in runs.items()}
  need = unique_prompt_tokens(conversations)
  early, late = (
    statistics.median(by_turn["kept"][part])
    for part in (slice(1, 6), slice(-5, None))
  )
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "model": args.model,
    "sessions": slots,
    "turns": turns,
    "prefill_over_unique": read["kept"] / need,
    "prefill_over_unique_anew": read["anew"] / need,
    "same_answers": sum(same) / len(same),
    "kept_s": sum(by_turn["kept"]),
    "anew_s": sum(by_turn["anew"]),
    "faster": sum(by_turn["anew"]) / sum(by_turn["kept"]),
    "late_over_early_turn": late / early,
    "sampled_tokens_per_s": slots * turns * SAMPLED / sum(by_turn["kept"]),
  }
  for name, value in result.items():
    print(f"{name:25} {value:.4g}" if isinstance(value, float)
          else f"{name:25} {value}")  # fmt: skip
  print("\nturn  kept, s  anew, s")
  for turn, pair in enumerate(
    zip(by_turn["kept"], by_turn["anew"], strict=True), 1
  ):
    print(f"{turn:4} {pair[0]:8.3f} {pair[1]:8.3f}")
  if args.plot:
    plot(args.plot, by_turn)
  print(json.dumps(result | {"seconds_by_turn": by_turn}))


if __name__ == "__main__":
  main()
