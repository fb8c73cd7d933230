"""What it saves that a critic of steps reads prompts alone, in one update.

  python benchmarks/critic_reads.py [--quick]

Episodes of an agent that thinks: in each of 10 turns it sees 60 tokens, thinks
180 and answers 20. "kept": the history shows all of it, so that each prompt
extends the one before. "dropped": it shows no thoughts, as the chat templates
of Qwen3 do. One update of StepPO with a critic of all layers, of a batch in the
layout "packed" and in "rows", with `learner.critic_reads=prompts` and `all` in
turn. `all_over_prompts` is the ratio of the medians of their times; "rows" are
the rows in use. The last line is one JSON object.
"""

import argparse
import dataclasses
import json
import statistics
import time

import numpy as np
import synthetic

from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh, presets
from steppo_jax.packing import prompt_rows
from steppo_jax.storage import folder as run_folder

SEEN, THOUGHT, ANSWER = 60, 180, 20
# Turns, and the length of a row in which the whole history lies.
TURNS, LENGTH = 10, 2816
QUICK = 3, 1024


def episodes(turns, dropped):
  """Episodes with thoughts, of those without."""
  made = []
  for one in synthetic.conversations(1, 512, group=2, turns=turns):
    rng = np.random.default_rng(len(made))
    draw = lambda n, rng=rng: rng.integers(3, 512, n).astype(np.int32)
    history, steps = np.zeros(0, np.int32), []
    for step in one.steps:
      prompt = np.concatenate([history, draw(SEEN)])
      response = draw(THOUGHT + ANSWER)
      steps.append(dataclasses.replace(
        step, prompt_ids=prompt, response_ids=response,
        response_mask=np.ones(len(response), bool),
        behaviour_logp=np.full(len(response), -6.2, np.float32),
      ))  # fmt: skip
      told = response[THOUGHT:] if dropped else response
      history = np.concatenate([prompt, told])
    made.append(dataclasses.replace(one, steps=tuple(steps)))
  return made


def measure(trajectories, layout, length, preset, repeats):
  """Medians of an update that reads prompts alone, and all; and rows in use."""
  config = synthetic.options(microbatch_rows=1)
  model = presets.get(preset, 512)
  packed, _ = synthetic.pack(trajectories, layout, length, config)
  rows = {"all": packed, "prompts": prompt_rows.pack(packed, pad_id=0)}
  batches = {
    "all": learner_state.put_batch(packed, mesh.make_mesh(1)),
    "prompts": synthetic.put(packed),
  }
  programs = {
    name: synthetic.compiled(model, config, batch)
    for name, batch in batches.items()
  }
  seconds = {name: [] for name in batches}
  for turn in range(repeats + 1):
    for name, batch in batches.items():
      start = time.perf_counter()
      programs[name] = synthetic.step(programs[name], batch)
      if turn:  # The first does what no other does.
        seconds[name].append(time.perf_counter() - start)
  median = {name: statistics.median(times) for name, times in seconds.items()}
  return {
    "all_over_prompts": median["all"] / median["prompts"],
    "prompts_s": median["prompts"],
    "rows": {name: int(found.rows_used.sum()) for name, found in rows.items()},
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="shorter episodes")
  quick = parser.parse_args().quick
  turns, length = QUICK if quick else (TURNS, LENGTH)
  preset, repeats = ("micro", 1) if quick else ("small", 3)
  found = {}
  for history in ("kept", "dropped"):
    made = episodes(turns, history == "dropped")
    for layout in ("packed", "rows"):
      name = f"{history}, {layout}"
      found[name] = measure(made, layout, length, preset, repeats)
      print(name, found[name], flush=True)
  result = {
    "hardware": run_folder.hardware(), "commit": run_folder.commit(),
    "cases": found,
  }  # fmt: skip
  print(json.dumps(result))


if __name__ == "__main__":
  main()
