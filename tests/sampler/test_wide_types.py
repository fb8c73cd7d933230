"""The sampler where JAX counts in 64 bits (`jax_enable_x64`)."""

import jax
import numpy as np
import worlds

HOME = jax if hasattr(jax, "enable_x64") else jax.experimental


def test_the_sampler_gives_the_same_answers_under_x64():
  tokens = lambda: [
    step.response_ids.tolist()
    for one in worlds.trajectories.__wrapped__(2)
    for step in one.steps
  ]
  want = tokens()
  with HOME.enable_x64(True):
    found = tokens()
  assert found == want
  assert np.concatenate(found).size > 4
