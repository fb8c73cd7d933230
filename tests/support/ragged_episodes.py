"""Real episodes, made ragged, and their batch in each layout.

Prompts that are rewritten, two branches from one prefix, identical answers and
prompts, empty responses, cut episodes.
"""

import dataclasses
import functools

import learner_runs
import numpy as np
import worlds

from steppo_jax.packing import options
from steppo_jax.packing import rows as packing

LAYOUTS = ("rows", "packed", "tree")


def rewritten(trajectory, how):
  """The episode with other prompts; what was sampled stays as it is."""
  steps = list(trajectory.steps)
  final = trajectory.final_prompt_ids
  head = len(steps[0].prompt_ids)
  short = lambda ids: np.concatenate([ids[: head - 3], ids[-9:]])
  if how == "window":  # only the last observations are kept
    steps[1:] = [
      dataclasses.replace(s, prompt_ids=short(s.prompt_ids)) for s in steps[1:]
    ]
    final = None if final is None else short(final)
  elif how == "repeat":  # the same prompt and answer twice, then on
    first = steps[0]
    steps[1] = dataclasses.replace(
      steps[1],
      **{
        name: getattr(first, name)
        for name in (
          "prompt_ids", "response_ids", "response_mask", "behaviour_logp",
          "reasoning_mask",
        )
      },
    )  # fmt: skip
  elif how == "empty":
    nothing = {
      "response_ids": np.zeros(0, np.int32),
      "response_mask": np.zeros(0, bool),
      "behaviour_logp": np.zeros(0, np.float32),
      "reasoning_mask": np.zeros(0, bool),
    }
    steps[1] = dataclasses.replace(steps[1], **nothing)
  return dataclasses.replace(
    trajectory, steps=tuple(steps), final_prompt_ids=final
  )


@functools.cache
def episodes():
  """Twelve episodes of six tasks; members of a group share what they can."""
  kinds = ("as played", "window", "repeat", "empty")
  real = worlds.trajectories(6, samples=2)
  assert all(len(t.steps) >= 2 for t in real)
  return [rewritten(t, kinds[i // 2 % 4]) for i, t in enumerate(real)]


def packed(layout):
  made = episodes()
  config = options.PackingConfig(layout=layout, row_length=worlds.CONTEXT)
  # Both members of a group in one part, so that the tree can span them.
  parts = learner_runs.CONFIG.num_minibatches
  return packing.pack(
    made, [i // 2 % parts for i in range(len(made))], config,
    num_parts=parts, rows_multiple=8, pad_id=0, reasoning=True,
  )  # fmt: skip
