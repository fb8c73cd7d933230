"""The update under pmap is the update."""

import dataclasses

import jax
import pytest
import test_learner

from steppo_jax import pmapped


def run(batch, algorithm, *, devices=4, updates=1, config=test_learner.CONFIG):
  made = pmapped.PmapLearner(
    test_learner.worlds.model(), algorithm, config,
    jax.devices()[:devices], num_updates=4, seed=0,
  )  # fmt: skip
  state = made.init(test_learner.worlds.policy())
  for _ in range(updates):
    state, found = made.update(state, None, batch)
  return state, jax.device_get(found)


# A critic on steps and on tokens, a centre over the whole mini-batch.
@pytest.mark.parametrize("name", ["steppo", "capo", "ppo"])
def test_four_devices_under_pmap_are_the_learner(name, sgd):
  batch, algorithm = test_learner.packed(), test_learner.row(name)
  want, numbers = test_learner.run(batch, algorithm, updates=2)
  state, found = run(batch, algorithm, updates=2)
  for leaf in jax.tree.leaves(state):
    assert leaf.shape[0] == 4
    assert (leaf[0] == leaf[-1]).all()
  test_learner.close(jax.device_get(pmapped.one(state)), want, 1e-6)
  assert found.keys() == numbers.keys()
  for key, value in numbers.items():
    test_learner.close(found[key], value, 1e-4)


def test_the_kernel_runs_within_pmap(sgd):
  batch, algorithm = test_learner.packed(), test_learner.row("grpo")
  config = dataclasses.replace(test_learner.CONFIG, attention="pallas")
  state, _ = run(batch, algorithm, devices=2, config=config)
  want, _ = test_learner.run(batch, algorithm)
  test_learner.close(jax.device_get(pmapped.one(state)), want)


def test_rows_that_do_not_divide_are_refused():
  config = dataclasses.replace(test_learner.CONFIG, microbatch_rows=6)
  with pytest.raises(ValueError, match="microbatch_rows=6"):
    pmapped.PmapLearner(
      test_learner.worlds.model(), test_learner.row("grpo"), config,
      jax.devices()[:4], num_updates=1, seed=0,
    )  # fmt: skip


def test_a_missing_reference_is_named():
  algorithm = test_learner.row("grpo", kl_coef=0.1)
  with pytest.raises(ValueError, match="reference"):
    run(test_learner.packed(), algorithm)
