"""The weight of the KL that follows a target: what it reads, and its type."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import toy_updates
from marks import some

import steppo_jax as sj

CONFIG = dataclasses.replace(
  toy_updates.CONFIG, learning_rate=0.0, actor_epochs=1
)
MEANS = (
  "token_mean", "step_mean_loss", "trajectory_step_mean",
  "trajectory_token_mean", "token_sum_over_constant",
)  # fmt: skip


def _row(aggregation="token_mean", **changes):
  return dataclasses.replace(
    sj.ALGORITHMS["dr_grpo"], kl_coef=0.1, kl_target=0.04,
    aggregation=aggregation, **changes,
  )  # fmt: skip


def _kl_by_hand():
  """Mean k3 over all action tokens, in float64."""
  rows = toy_updates.batch().tokens
  flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), rows)
  new, ref = (
    np.asarray(toy_updates.log_probs(p, flat)[0], np.float64)
    for p in (toy_updates.parameters(), toy_updates.reference())
  )
  gap = (ref - new)[np.asarray(flat.step_ids) > 0]
  return np.mean(np.expm1(gap) - gap)


@pytest.mark.parametrize(
  "aggregation", some("token_sum_over_constant", slow=MEANS)
)
def test_the_target_is_in_nats_a_token_whatever_the_loss_is_divided_by(
  aggregation,
):
  parts = sj.make_parts(
    sj.Model(toy_updates.log_probs), _row(aggregation, constant=1000.0), CONFIG
  )
  state, found = jax.jit(functools.partial(sj.update, parts))(
    toy_updates.start(parts), toy_updates.reference(), toy_updates.batch()
  )
  # So far above the target that the weight makes a whole step.
  assert _kl_by_hand() > 0.04 * 1.2
  np.testing.assert_allclose(state.kl_coef, 0.1 * 1.02, rtol=1e-6)
  total, weight = found["policy/kl_per_token"]
  np.testing.assert_allclose(total / weight, _kl_by_hand(), rtol=1e-4)
