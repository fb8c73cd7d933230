"""Random conversations, as paths of tokens."""

import numpy as np
from hypothesis import strategies as st

from steppo_jax.packing import forest


@st.composite
def conversations(draw):
  """Trajectories over two token ids, so that prefixes and answers coincide.

  A prompt extends the path before it, rewrites it from some depth on, or
  repeats an earlier prompt of the trajectory.
  """
  token = st.integers(0, 1)
  some = lambda low, high: draw(st.lists(token, min_size=low, max_size=high))
  task = some(1, 3)
  paths, step = [], 0
  for trajectory in range(draw(st.integers(1, 3))):
    prompt, prompts = list(task), []
    for _ in range(draw(st.integers(1, 4))):
      step += 1
      response = some(0, 3)
      prompts.append(prompt)
      ids = [*prompt, *response]
      paths.append((ids, len(prompt), step, 0, trajectory))
      how = draw(st.sampled_from(["extend", "rewrite", "repeat"]))
      if how == "extend":
        prompt = [*ids, *some(0, 2)]
      elif how == "rewrite":
        prompt = [*ids[: draw(st.integers(1, len(ids)))], *some(0, 2)]
      else:
        prompt = draw(st.sampled_from(prompts))
    if draw(st.booleans()):
      paths.append((prompt, len(prompt), 0, step, trajectory))
  return [forest.Path(np.array(p[0], np.int32), *p[1:]) for p in paths]
