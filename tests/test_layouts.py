"""Three layouts of one batch give one loss and one gradient, for every row.

Real episodes, made ragged: prompts that are rewritten, two branches from one
prefix, identical answers and prompts, empty responses, cut episodes.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import test_learner
import test_update
import worlds

from steppo_jax import algorithms, learner, mesh, packing
from steppo_jax import update as update_lib

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
          "prompt_ids", "response_ids", "response_mask", "rollout_logprobs"
        )
      },
    )  # fmt: skip
  elif how == "empty":
    nothing = {
      "response_ids": np.zeros(0, np.int32),
      "response_mask": np.zeros(0, bool),
      "rollout_logprobs": np.zeros(0, np.float32),
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
  config = packing.PackingConfig(layout=layout, row_length=worlds.CONTEXT)
  # Both members of a group in one part, so that the tree can span them.
  parts = test_learner.CONFIG.num_minibatches
  return packing.pack(
    made, [i // 2 % parts for i in range(len(made))], config,
    num_parts=parts, rows_multiple=8, pad_id=0,
  )  # fmt: skip


def updated(row, batch):
  """State and metrics after one update with plain gradient steps."""
  import optax

  parts = test_update.parts_of(row)._replace(
    policy_optimizer=optax.sgd(0.05), critic_optimizer=optax.sgd(0.05)
  )
  batch = learner.put_batch(batch, mesh.make_mesh(1))
  reference, teacher = test_update.policies(row)
  run = jax.jit(functools.partial(update_lib.update, parts))
  state = test_update.start(parts)
  return jax.device_get(run(state, reference, batch, teacher))


def close(a, b):
  """Relative to the largest number of the two trees, not entry by entry."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    scale = max(np.abs(x).max(), 1.0)
    np.testing.assert_allclose(x, y, atol=1e-5 * scale, rtol=0)


def test_the_batch_is_stored_in_three_sizes():
  rows, chains, tree = (packed(name).unique_tokens for name in LAYOUTS)
  assert rows > 1.5 * chains > 1.5 * 1.1 * tree


# One row of each grain of ratio and kind of credit; the others are slow.
FAST = ("steppo", "ppo", "gigpo")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name in algorithms.ALGORITHMS
  ],
)
def test_three_layouts_give_one_loss_and_one_update(name):
  row = dataclasses.replace(algorithms.get(name), entropy_coef=0.01)
  states, found = zip(
    *(updated(row, packed(layout)) for layout in LAYOUTS), strict=True
  )
  moved = test_update.distance(states[0].policy, worlds.policy())
  assert moved > 1e-4
  for state, metrics in zip(states[1:], found[1:], strict=True):
    # The parameters moved by `moved`: their differences are far below it.
    close(state.policy, states[0].policy)
    assert test_update.distance(state.policy, states[0].policy) < 0.01 * moved
    close(state.critic, states[0].critic)
    for key in found[0]:
      if "gap" not in key:
        np.testing.assert_allclose(
          metrics[key], found[0][key], rtol=1e-4, atol=1e-4, err_msg=key
        )


def trunk_trained_per_branch(batch):
  """A naive merge of rows: what a later prompt repeats is trained there too."""
  ids = batch.tokens.step_ids.copy()
  first, again = 1, 0
  for trajectory in episodes():
    for k, step in enumerate(trajectory.steps):
      place = np.argwhere(batch.tokens.step_ids == first + k)
      if not len(place):
        continue
      part, line = place[0][:2]
      for earlier, before in enumerate(trajectory.steps[:k]):
        path = np.concatenate([before.prompt_ids, before.response_ids])
        if np.array_equal(step.prompt_ids[: len(path)], path):
          span = np.s_[part, line, len(before.prompt_ids) : len(path)]
          ids[span] = first + earlier
          again += 1
    first += len(trajectory.steps)
  assert again > 10
  return batch._replace(tokens=batch.tokens.replace(step_ids=ids))


def test_training_the_trunk_once_per_branch_is_another_gradient():
  row = test_learner.row("steppo")
  exact = packed("rows")
  right, wrong = (
    updated(row, batch)[0] for batch in (exact, trunk_trained_per_branch(exact))
  )
  moved = test_update.distance(right.policy, worlds.policy())
  assert test_update.distance(right.policy, wrong.policy) > 0.1 * moved
