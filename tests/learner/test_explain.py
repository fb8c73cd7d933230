"""What is told of each step and token averages to the metrics of the update.

With learning rates too small to move a weight, every optimizer step of an
update sees the policy and the critic of its beginning, so that its metrics,
which are made by the losses, are means over what `explain` tells.
"""

import dataclasses

import jax
import learner_runs
import numpy as np
import pytest
import worlds

from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import learner
from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh

pytestmark = pytest.mark.slow

STILL = dataclasses.replace(
  learner_runs.CONFIG, learning_rate=1e-30, critic_learning_rate=1e-30
)
# Modes that any row may have, with a bootstrap and a layout.
MODES = {
  "steppo drop_last": ("steppo", {}, "drop_last", "packed"),
  "ppo zero": ("ppo", {}, "zero", "packed"),
  "capo tree": ("capo", {}, "value", "tree"),
  "gspo rows": ("gspo", {}, "value", "rows"),
  "grpo tis": ("grpo", {"rollout_correction": "tis_token"}, "value", "packed"),
  "steppo fresh": ("steppo", {"max_staleness": 0}, "value", "packed"),
  "grpo clipped": ("grpo", {"advantage_clip": 0.5}, "value", "packed"),
  "ppo overlong": (
    "ppo", {"overlong_length": 8, "overlong_cache": 4}, "value", "packed",
  ),
}  # fmt: skip
CASES = {name: (name, {}, "value", "packed") for name in (
  algorithms_table.ALGORITHMS
)} | MODES  # fmt: skip


def _aged(packed):
  """Every other step sampled an update ago, by a policy that has done one."""
  table = packed.table
  version = np.where(table.live, np.arange(len(table.live)) % 2, 0)
  return packed._replace(table=table.replace(version=version.astype(np.int32)))


def _case(name):
  """The batch, what is told of it, and the metrics of an update of it."""
  row_name, changes, bootstrap, layout = CASES[name]
  row = dataclasses.replace(algorithms_table.get(row_name), **changes)
  packed = _aged(
    learner_runs.packed(layout, reasoning="reasoning" in row.wants)
  )
  one = mesh.make_mesh(1)
  made = learner.Learner(
    worlds.model(), row, dataclasses.replace(STILL, bootstrap=bootstrap), one,
    num_updates=4, seed=0,
  )  # fmt: skip
  # Another policy than the one that sampled: ratios are far from 1.
  state = made.init(worlds.policy(1))
  state = state.replace(update=state.update + 1)
  reference = worlds.policy(2) if row.reads_reference else None
  teacher = worlds.policy(3) if "teacher" in row.needs else None
  put = learner_state.put_batch(packed, one)
  told = made.explain(state, reference, put, teacher)
  told = jax.tree.map(np.asarray, jax.device_get(told))
  _, found = made.update(state, reference, put, teacher)
  return row, packed, told, jax.device_get(found)


def _mean(found, name):
  total, weight = found[name]
  return float(total) / float(weight)


@pytest.mark.parametrize("name", list(CASES))
def test_means_of_what_is_told_are_the_metrics_of_the_update(name):
  row, packed, told, found = _case(name)
  close = lambda x, key: np.testing.assert_allclose(
    x, _mean(found, key), rtol=2e-4, atol=2e-5, err_msg=key
  )
  ids = packed.tokens.step_ids
  sampled, acting = ids > 0, np.isfinite(told.clipped_t)
  assert acting.any()
  assert (sampled | ~acting).all()
  assert np.isfinite(told.logp_t)[sampled].all()
  assert np.isnan(told.logp_t)[~sampled].all()
  close(told.entropy_t[acting].mean(), "policy/entropy")
  if row.segment_share is None:
    _check_policy(row, ids, acting, told, close)
  else:
    # Segments are finer than steps: a token has the number of its own.
    ratio = told.ratio_k[np.where(acting, ids, 1)]
    assert np.isfinite(ratio[acting]).all()
  if "teacher" in row.needs:
    close(told.teacher_gap_t[sampled].mean(), "teacher/gap")
  else:
    assert np.isnan(told.teacher_gap_t).all()
  if row.critic is None:
    assert np.isnan([told.value_k, told.delta_k, told.target_k]).all()
  else:
    _check_critic(row, packed, ids, told, close)


def _check_policy(row, ids, acting, told, close):
  steps = np.unique(ids[acting])
  assert set(np.flatnonzero(np.isfinite(told.ratio_k))) == set(steps)
  if row.ratio == "token":
    close(told.ratio_t[acting].mean(), "policy/ratio")
    close(told.clipped_t[acting].mean(), "policy/clip_fraction")
    close(told.advantage_t[acting].mean(), "policy/advantage")
    close(np.abs(told.advantage_t[acting]).mean(), "policy/advantage_abs")
    for k in steps[:5]:  # The geometric mean of the step's tokens.
      z = np.log(told.ratio_t[acting & (ids == k)])
      np.testing.assert_allclose(told.ratio_k[k], np.exp(z.mean()), rtol=1e-5)
    return
  of_step = lambda x: np.array([x[acting & (ids == k)].mean() for k in steps])
  close(told.ratio_k[steps].mean(), "policy/ratio")
  close(of_step(told.clipped_t).mean(), "policy/clip_fraction")
  close(told.advantage_k[steps].mean(), "policy/advantage")
  np.testing.assert_allclose(
    told.advantage_k[steps], of_step(told.advantage_t), atol=1e-5
  )


def _check_critic(row, packed, ids, told, close):
  live = np.isfinite(told.value_k)
  table = packed.table
  assert (table.live | ~live).all()
  if row.critic == "token":
    # A step's target is the mean of its tokens', which the loss averages over.
    used = np.unique(ids[np.isfinite(told.advantage_t)])
    count = table.num_tokens[used]
    close(np.average(told.target_k[used], weights=count), "critic/value_target")
  elif row.segment_share is None:
    close(told.target_k[live].mean(), "critic/value_target")
    close(told.value_k[live].mean(), "critic/value")
  # Where no limit cut the episode, a TD error is of what stands there.
  steps = np.flatnonzero(live)
  last = np.append(table.trajectory[steps][1:] != table.trajectory[steps][:-1],
                   True)  # fmt: skip
  following = np.append(told.value_k[steps][1:], 0.0)
  discount = row.discount
  if row.critic == "token" and discount != 1:
    return
  delta = told.reward_k[steps] - told.value_k[steps] + np.where(
    last, 0.0, discount * following
  )  # fmt: skip
  known = ~last
  if row.critic == "token":  # A step without tokens has no TD error there.
    full = table.num_tokens[steps] > 0
    known &= full & np.append(full[1:], False)
  np.testing.assert_allclose(
    told.delta_k[steps][known], delta[known], rtol=1e-4, atol=1e-5
  )
