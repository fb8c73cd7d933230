"""ActFocus as a weighted mean: of any aggregation, after every mask."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import toy_updates
from marks import some

import steppo_jax as sj
from steppo_jax.algorithms import objective
from steppo_jax.learner import credit

AGGREGATIONS = (
  "token_mean", "step_mean_loss", "trajectory_step_mean",
  "trajectory_token_mean", "token_sum_over_constant",
)  # fmt: skip


@functools.cache
def _assigned(max_staleness, alpha, beta, aggregation):
  """Credit of a row with weights; every third step is 5 updates old."""
  row = dataclasses.replace(
    sj.ALGORITHMS["actfocus_grpo"], aggregation=aggregation, constant=7.0,
    focus_alpha=alpha, focus_beta=beta, max_staleness=max_staleness,
  )  # fmt: skip
  model = sj.Model(
    toy_updates.log_probs, None, toy_updates.log_probs_and_energies
  )
  parts = sj.make_parts(model, row, toy_updates.CONFIG)
  batch = toy_updates.batch(reasoning=True)
  old = np.arange(len(batch.table.live)) % 3 == 0
  table = batch.table.replace(version=np.where(old, 1, 6).astype(np.int32))
  state = toy_updates.start(parts).replace(update=np.int32(6))
  run = jax.jit(functools.partial(credit.assign, parts))
  found = run(state, toy_updates.reference(), batch._replace(table=table), None)
  return row, jax.device_get(found)


EACH = pytest.mark.parametrize(
  ("aggregation", "max_staleness"),
  some(
    ("trajectory_step_mean", 2),
    slow=[(name, stale) for name in AGGREGATIONS for stale in (None, 2)],
  ),
)


def _losses(row, found, loss_t):
  """Loss of each mini-batch, with the weights and without."""
  both = []
  for m, ids in enumerate(found.acting.tokens.step_ids):
    of = lambda x_t, ids=ids: np.divide(
      *objective.aggregate(row, x_t, ids, found.acting.table)
    )
    weight = found.weight[m]
    both.append((of(weight * loss_t), of(np.full_like(weight, loss_t))))
  return np.transpose(both)


@EACH
def test_weights_leave_the_loss_of_a_constant(aggregation, max_staleness):
  row, found = _assigned(max_staleness, 0.1, 0.5, aggregation)
  acted = found.acting.tokens.step_ids > 0
  assert acted.sum() < (found.batch.tokens.step_ids > 0).sum() or (
    max_staleness is None
  )
  weighted, plain = _losses(row, found, np.float32(-1.5))
  np.testing.assert_allclose(weighted, plain, rtol=1e-5)
  # They differ, and those that no loss reads are none.
  assert np.ptp(found.weight[acted]) > 0.5
  np.testing.assert_array_equal(found.weight[~acted], 0)


@EACH
def test_weights_of_1_stay_1_to_the_bit(aggregation, max_staleness):
  _, found = _assigned(max_staleness, 1.0, 0.0, aggregation)
  np.testing.assert_array_equal(found.weight, found.acting.tokens.step_ids > 0)
