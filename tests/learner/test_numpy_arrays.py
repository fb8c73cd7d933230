"""Batches, states and policies of NumPy's arrays, as a host holds them."""

import chex
import jax
import numpy as np
import pytest
import toy_updates
from marks import some

import steppo_jax as sj
from steppo_jax.algorithms import estimators
from steppo_jax.learner import explain

ROWS = ("vetta", "steppo", "capo", "ppo", "grpo", "sapo_segment", "serl")


@pytest.mark.parametrize(
  ("name", "function"),
  some(
    ("vetta", sj.update),
    slow=[(name, f) for name in ROWS for f in (sj.update, explain.explain)],
  ),
)
def test_an_update_takes_the_arrays_of_numpy(name, function):
  parts = sj.make_parts(
    sj.Model(toy_updates.log_probs, toy_updates.values), name,
    toy_updates.CONFIG,
  )  # fmt: skip
  row = parts.algorithm
  given = (
    toy_updates.start(parts),
    toy_updates.reference() if row.reads_reference else None,
    toy_updates.batch(),
    toy_updates.parameters(7) if "teacher" in row.needs else None,
  )
  # Closed over and not handed in, so that nothing turns them into tracers.
  host = jax.device_get(given)
  found = jax.eval_shape(lambda: function(parts, *host))
  if function is sj.update:
    chex.assert_trees_all_equal_shapes_and_dtypes(found[0], given[0])


def test_segments_are_cut_of_a_table_of_numpy():
  flat = jax.tree.map(
    lambda x: x.reshape(-1, x.shape[-1]), toy_updates.packed().tokens
  )
  table = toy_updates.packed().table
  cut = jax.jit(
    lambda entropy: estimators.resegment(
      flat, table, entropy, share=0.3, num_steps=99
    )[1]
  )
  found = cut(np.ones(flat.tokens.shape, np.float32))
  # Entropies that are all alike end no segment: the steps stay.
  live = np.asarray(table.live)
  np.testing.assert_array_equal(
    np.flatnonzero(found.live), np.flatnonzero(live)
  )
