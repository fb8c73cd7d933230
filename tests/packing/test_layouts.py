"""Three layouts of one batch give one loss and one gradient, for every row.

Real episodes, made ragged: prompts that are rewritten, two branches from one
prefix, identical answers and prompts, empty responses, cut episodes.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import random_forests
import whole_updates
import worlds
from hypothesis import given, settings
from marks import some
from ragged_episodes import LAYOUTS, episodes, packed

from steppo_jax import types
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.models import mesh
from steppo_jax.packing import options
from steppo_jax.packing import rows as packing


def capture():
  """An optimizer that moves nothing and keeps the last gradient."""
  import optax

  return optax.GradientTransformation(
    lambda params: jax.tree.map(np.zeros_like, params),
    lambda grads, _, params: (jax.tree.map(lambda x: 0 * x, params), grads),
  )


@functools.cache
def program(row):
  """One update that keeps its gradient; compiled once for each shape."""
  parts = whole_updates.parts_of(row)._replace(
    policy_optimizer=capture(), critic_optimizer=capture()
  )
  return parts, jax.jit(functools.partial(update_lib.update, parts))


def gradients(row, batch):
  """Gradients of policy and critic, and metrics, at weights off the sampler's.

  Ratios differ from 1, so that clips bind and KL and gap are not 0.
  """
  parts, run = program(row)
  # Not `put_batch`, which refuses what is wrong on purpose.
  tokens = batch.tokens
  if "reasoning" not in row.wants:
    tokens = tokens.replace(reasoning=None)
  batch = learner_state.Batch(tokens, batch.table, batch.rows_used)
  reference, teacher = whole_updates.policies(row)
  state = whole_updates.start(parts)
  mixed = lambda a, b: 0.9 * a + 0.1 * b
  policy = jax.tree.map(mixed, worlds.policy(), worlds.policy(3))
  state = state.replace(policy=policy)
  state, found = jax.device_get(run(state, reference, batch, teacher))
  return state.policy_optimizer, state.critic_optimizer, found


def norm(tree):
  return np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))


def same(a, b):
  """Two gradients, relative to their size."""
  assert norm(a) > 1e-4
  gap = jax.tree.map(lambda x, y: x - y, a, b)
  assert norm(gap) <= 1e-5 * norm(a)


def test_the_batch_is_stored_in_three_sizes():
  rows, chains, tree = (packed(name).unique_tokens for name in LAYOUTS)
  assert rows > 1.5 * chains > 1.5 * 1.1 * tree


def row_of(name):
  return dataclasses.replace(algorithms_table.get(name), entropy_coef=0.01)


# The others differ by their credit and ratio, which know of no layout.
@pytest.mark.parametrize(
  "name", some("steppo", slow=algorithms_table.ALGORITHMS)
)
def test_three_layouts_give_one_loss_and_one_gradient(name):
  row = row_of(name)
  policy, critic, found = gradients(row, packed("rows"))
  for layout in ("packed", "tree"):
    here = gradients(row, packed(layout))
    same(policy, here[0])
    if critic is not None:
      same(critic, here[1])
    # Sums and weights: means near 0, such as that of white advantages, round.
    for key in found:
      wanted, value = np.asarray(found[key]), np.asarray(here[2][key])
      scale = max(np.abs(wanted).max(), 1e-3)
      assert np.abs(value - wanted).max() <= 1e-5 * scale, key


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


@pytest.mark.slow
def test_training_the_trunk_once_per_branch_is_another_gradient():
  row = row_of("steppo")
  exact = packed("rows")
  right, wrong = (
    gradients(row, batch)[0]
    for batch in (exact, trunk_trained_per_branch(exact))
  )
  gap = jax.tree.map(lambda x, y: x - y, right, wrong)
  assert norm(gap) > 0.1 * norm(right)


def as_trajectories(paths):
  """Records that hold the paths of a random forest."""
  made = {}
  for path in paths:
    made.setdefault(path.trajectory, []).append(path)
  found = []
  for number, own in made.items():
    steps = [p for p in own if p.step]
    rng = np.random.default_rng(len(paths) + number)
    after = [p.ids for p in own if not p.step]
    records = tuple(
      types.Step(
        prompt_ids=p.ids[: p.prompt],
        response_ids=p.ids[p.prompt :],
        response_mask=np.ones(len(p.ids) - p.prompt, bool),
        behaviour_logp=rng.normal(-4, 0.3, len(p.ids) - p.prompt).astype(
          np.float32
        ),
        reward=float(rng.normal()),
        trajectory_uid=str(number),
        step_index=k,
        group_uid="g",
        policy_version=0,
        terminated=k + 1 == len(steps) and not after,
        truncated=k + 1 == len(steps) and bool(after),
      )
      for k, p in enumerate(steps)
    )
    task = types.Task("g", "household", "none", {})
    found.append(
      types.Trajectory(
        str(number), task, records, after[0] if after else None, False
      )
    )
  return found


@functools.cache
def forest_gradients(layout):
  """One compiled update, for random forests of one shape."""
  config = options.PackingConfig(layout=layout, row_length=64)
  row = row_of("ppo")
  parts = whole_updates.parts_of(row, num_minibatches=1)._replace(
    policy_optimizer=capture(), critic_optimizer=capture()
  )
  run = jax.jit(functools.partial(update_lib.update, parts))
  reference, teacher = whole_updates.policies(row)
  state = whole_updates.start(parts)

  def function(trajectories):
    made = packing.pack(
      trajectories, [0] * len(trajectories), config, num_parts=1,
      rows_multiple=8, pad_id=0, num_steps=16, rows_per_part=16,
    )  # fmt: skip
    batch = learner_state.put_batch(made, mesh.make_mesh(1))
    after, _ = jax.device_get(run(state, reference, batch, teacher))
    return after.policy_optimizer, after.critic_optimizer

  return function


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(paths=random_forests.conversations())
def test_random_forests_have_one_gradient_in_three_layouts(paths):
  made = as_trajectories(paths)
  wanted = forest_gradients("rows")(made)
  for layout in ("packed", "tree"):
    for a, b in zip(wanted, forest_gradients(layout)(made), strict=True):
      gap = norm(jax.tree.map(lambda x, y: x - y, a, b))
      # A tiny gradient is the difference of large ones.
      assert gap <= 1e-5 * max(norm(a), 0.1)
