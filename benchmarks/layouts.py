"""What sharing prefixes saves: one batch in three layouts, one update of each.

  python benchmarks/layouts.py [--quick] [--only BATCH ...]

Batches, all in one run:

- household: real episodes of the committed warm start in groups of four.
- synthetic: 10 turns of 100 tokens, one fifth of which is sampled, in groups of
  eight with a common first prompt; each prompt extends the one before.
- rebuilt: the same turns in prompts that are written anew, in prefix-friendly
  order: 500 tokens of instructions and task, the last two turns, what is seen.
  The members of a group play their first three turns alike.
- synthetic_20m, rebuilt_20m: two members of such a group and a model of 20
  million parameters.

Times are of whole updates (credit, critic, policy), of the micro model unless
said. "limit" is the ratio of the stored tokens, "share" the part of it that is
reached: above 1 because rows also pay for padding. The last line is one JSON
object. Compare within one run only.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import NamedTuple

import jax
import synthetic

from steppo_jax.models import presets
from steppo_jax.storage import events
from steppo_jax.storage import folder as run_folder
from steppo_jax.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from steppo_jax.training import config
from steppo_jax.training import run as training_run

EXPERIMENT = (
  pathlib.Path(__file__).parents[1] / "experiments" / "household_steppo.py"
)
LAYOUTS = ("rows", "packed", "tree")
REBUILT = {"static": 500, "window": 2, "common": 3}


class Case(NamedTuple):
  """A batch and how it is laid out: one step a row is as short as it can be."""

  make: object  # () -> trajectories
  model: str
  rows_length: int
  packed_length: int
  packed_rows: int | None = None  # one shape for two programs


def household(tasks):
  """Episodes of the warm start, as the first update plays them."""
  options = dataclasses.replace(
    config.load(str(EXPERIMENT)), tasks_per_update=tasks, group_size=4
  )
  run = training_run.Run(
    options, pathlib.Path("."), events.Log(None), lambda _: None
  )
  with run.players as players:
    players.engine.set_params(run.policy, 0)
    return players.play(run.episodes(0))


def cases(quick, vocab):
  """The batches by name."""
  talk = lambda tasks, group, **how: (
    lambda: synthetic.conversations(tasks, vocab, group=group, **how)
  )
  if quick:
    return {
      "household": Case(lambda: household(2), "micro", 256, 256),
      "synthetic": Case(talk(1, 2), "micro", 1024, 2048, 8),
      "rebuilt": Case(talk(1, 2, **REBUILT), "micro", 1024, 2048, 8),
    }
  return {
    "household": Case(lambda: household(16), "micro", 256, 256),
    "synthetic": Case(talk(2, 8), "micro", 1024, 4096),
    "rebuilt": Case(talk(2, 8, **REBUILT), "micro", 1024, 8192, 16),
    "synthetic_20m": Case(talk(1, 2), "base_20m", 1024, 2048, 8),
    "rebuilt_20m": Case(talk(1, 2, **REBUILT), "base_20m", 1024, 2048, 8),
  }


def measure(case, trajectories, layout, vocab, repeats, programs):
  """Seconds of packing and of an update, and tokens, in one layout."""
  length, rows = case.packed_length, case.packed_rows
  if layout == "rows":
    length, rows = case.rows_length, None
  # A microbatch holds as many tokens in short rows as in long ones.
  options = synthetic.options(microbatch_rows=max(1, 2048 // length))
  model = presets.get(case.model, vocab)
  packed, pack_s = synthetic.pack(trajectories, layout, length, options, rows)
  batch = synthetic.put(packed)
  shape = (case.model, options, *(x.shape for x in jax.tree.leaves(batch)))
  if shape not in programs:
    programs[shape] = synthetic.compiled(model, options, batch)
  seconds, programs[shape] = synthetic.timed(programs[shape], batch, repeats)
  return {
    "update_s": seconds,
    "pack_s": pack_s,
    "unique_tokens": packed.unique_tokens,
    "slots": int(packed.rows_used.sum()) * length,
  }


def compare(case, vocab, repeats, programs):
  """All layouts of one batch, each with what it saves."""
  trajectories = case.make()
  found = {
    layout: measure(case, trajectories, layout, vocab, repeats, programs)
    for layout in LAYOUTS
  }
  base = found["rows"]
  for here in found.values():
    here["faster"] = base["update_s"] / here["update_s"]
    here["limit"] = base["unique_tokens"] / here["unique_tokens"]
    here["share"] = here["faster"] / here["limit"]
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="small batches")
  parser.add_argument("--only", nargs="+", help="these batches")
  chosen = parser.parse_args()
  vocab = SentencePieceTokenizer().vocab_size
  batches = cases(chosen.quick, vocab)
  unknown = set(chosen.only or ()) - set(batches)
  if unknown:
    parser.error(f"{sorted(unknown)} are none of {', '.join(batches)}")
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
  }
  print("\n".join(f"{name:13} {value}" for name, value in result.items()))
  print(
    f"\n{'batch':13} {'layout':7} {'update s':>9} {'tokens':>8} {'slots':>8}"
    f" {'faster':>7} {'limit':>7} {'share':>6} {'pack s':>7}"
  )
  programs = {}
  for name in chosen.only or batches:
    case = batches[name]
    repeats = 1 if chosen.quick or case.model != "micro" else 3
    found = compare(case, vocab, repeats, programs)
    result[name] = found
    for layout, here in found.items():
      print(
        f"{name:13} {layout:7} {here['update_s']:9.2f}"
        f" {here['unique_tokens']:8} {here['slots']:8} {here['faster']:7.2f}"
        f" {here['limit']:7.2f} {here['share']:6.2f} {here['pack_s']:7.3f}"
      )
    for layout in ("packed", "tree"):
      for key, value in (("over_rows", "faster"), ("share", "share")):
        result.setdefault(f"{layout}_{key}", {})[name] = found[layout][value]
  print(json.dumps(result))


if __name__ == "__main__":
  main()
