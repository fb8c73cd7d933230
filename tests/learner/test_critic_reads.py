"""A critic that reads prompts alone learns what one of whole rows learns."""

import dataclasses
import functools

import jax
import learner_runs
import numpy as np
import pytest
import ragged_episodes
import whole_updates
import worlds

from steppo_jax.learner import learner, options
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.models import mesh
from steppo_jax.packing import prompt_rows

CONFIG = dataclasses.replace(
  learner_runs.CONFIG, attention_block=worlds.CONTEXT, logprob_chunk=1024
)
ROW = learner_runs.row("steppo", value_clip=0.05)


@functools.cache
def updated(layout, prompts, devices=1, **changes):
  """State and metrics after two updates on one batch."""
  config = dataclasses.replace(CONFIG, **changes)
  where = mesh.make_mesh(devices)
  spec = learner.make_spec(
    worlds.model(), ROW, config, where, num_updates=4, seed=0
  )
  packed = ragged_episodes.packed(layout)
  rows = prompt_rows.pack(packed, pad_id=0) if prompts else None
  batch = learner_state.put_batch(packed, where, prompts=rows)
  step = jax.jit(functools.partial(update_lib.update, spec))
  state = learner.init(spec, worlds.policy())
  for _ in range(2):
    state, found = step(state, None, batch)
  return jax.device_get((state, found))


def test_values_are_those_of_whole_rows():
  spec = learner.make_spec(
    worlds.model(), ROW, CONFIG, mesh.make_mesh(1), num_updates=4, seed=0
  )
  state = whole_updates.start(spec)
  packed = ragged_episodes.packed("rows")
  rows = prompt_rows.pack(packed, pad_id=0)
  batch = learner_state.put_batch(packed, spec.mesh, prompts=rows)
  assign = lambda *given: update_lib.assigned(spec, *given)[1].old_value
  found = jax.jit(assign)(state, None, batch, None)
  flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), packed.tokens)
  want = jax.jit(spec.values)(state.critic, None, flat).reshape(-1)
  live, table = packed.table.live, packed.table
  ends = live & table.truncated
  at = np.concatenate([table.boundary[live], table.bootstrap_at[ends]])
  value = np.asarray(found).reshape(-1)
  np.testing.assert_allclose(value[at], want[at], rtol=1e-5, atol=1e-5)
  assert np.abs(value[at]).max() > 0.1
  # Nothing else is read.
  assert not np.delete(value, at).any()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layout", "changes"),
  [
    ("rows", {}),
    ("packed", {"bootstrap": "drop_last"}),
    ("tree", {"critic_layers": 1}),
  ],
)
def test_both_learn_the_same(layout, changes):
  (state, found), (want, metrics) = (
    updated(layout, prompts, **changes) for prompts in (True, False)
  )
  learner_runs.close(state, want)
  learner_runs.close(found, metrics, tolerance=1e-4)
  # The critic moved, and its values are not all alike.
  start = learner.init(
    learner.make_spec(
      worlds.model(), ROW, CONFIG, mesh.make_mesh(1), num_updates=4, seed=0
    ),
    worlds.policy(),
  ).critic
  head = start["head"]["kernel"] - state.critic["head"]["kernel"]
  assert np.abs(head).max() > 1e-3


@pytest.mark.slow
def test_rows_may_be_split_over_devices():
  for a, b in zip(updated("rows", True, 8), updated("rows", True), strict=True):
    learner_runs.close(a, b, tolerance=1e-4)


@pytest.mark.slow
def test_kept_hidden_states_are_of_whole_rows():
  kept = updated("packed", True, critic_trunk="policy")
  want = updated("packed", False, critic_trunk="policy")
  for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("row", ["ppo", "vetta"])
def test_values_inside_of_responses_are_refused(row):
  packed = ragged_episodes.packed("packed")
  spec = learner.make_spec(
    worlds.model(), learner_runs.row(row), CONFIG, mesh.make_mesh(1),
    num_updates=4, seed=0,
  )  # fmt: skip
  batch = learner_state.put_batch(
    packed, spec.mesh, prompts=prompt_rows.pack(packed, pad_id=0)
  )
  run = functools.partial(update_lib.update, spec)
  with pytest.raises(ValueError, match="call put_batch without prompts"):
    jax.eval_shape(
      run, learner.init(spec, worlds.policy()), worlds.policy(1), batch
    )


def test_an_unknown_choice_is_refused():
  with pytest.raises(ValueError, match=r"critic_reads='rows' is none of"):
    options.LearnerConfig(critic_reads="rows")
