"""Steps and trajectories of a few tokens, written by hand."""

import numpy as np

from steppo_jax import types

TASK = types.Task("t", "household", "f", {})


def step(prompt, response, index=0, *, uid="a", end=None, reward=0.0):
  return types.Step(
    prompt_ids=np.array(prompt, np.int32),
    response_ids=np.array(response, np.int32),
    response_mask=np.ones(len(response), bool),
    behaviour_logp=-np.arange(1, len(response) + 1, dtype=np.float32),
    reward=reward,
    trajectory_uid=uid,
    step_index=index,
    group_uid="g",
    policy_version=0,
    terminated=end == "terminated",
    truncated=end == "truncated",
  )


def trajectory(steps, *, uid="a", final=None):
  final = None if final is None else np.array(final, np.int32)
  return types.Trajectory(uid, TASK, tuple(steps), final, False)


TWO_STEPS = trajectory(
  [
    step([5, 6], [7, 8]),
    step([5, 6, 7, 8, 9], [10], 1, end="truncated", reward=0.5),
  ],
  final=[5, 6, 7, 8, 9, 10, 11],
)
