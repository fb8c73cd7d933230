"""The update under pmap is the update."""

import dataclasses

import jax
import learner_runs
import pytest
from marks import some

from steppo_jax.learner import pmapped


def run(batch, algorithm, *, devices=4, updates=1, config=learner_runs.CONFIG):
  made = pmapped.PmapLearner(
    learner_runs.worlds.model(), algorithm, config,
    jax.devices()[:devices], num_updates=4, seed=0,
  )  # fmt: skip
  state = made.init(learner_runs.worlds.policy())
  for _ in range(updates):
    state, found = made.update(state, None, batch)
  return state, jax.device_get(found)


# A critic on steps and on tokens, a centre over the whole mini-batch.
@pytest.mark.slow
@pytest.mark.parametrize("name", some("steppo", slow=["capo", "ppo"]))
def test_four_devices_under_pmap_are_the_learner(name, sgd):
  batch, algorithm = learner_runs.packed(), learner_runs.row(name)
  want, numbers = learner_runs.run(batch, algorithm, updates=2)
  state, found = run(batch, algorithm, updates=2)
  for leaf in jax.tree.leaves(state):
    assert leaf.shape[0] == 4
    assert (leaf[0] == leaf[-1]).all()
  learner_runs.close(jax.device_get(pmapped.one(state)), want, 1e-6)
  assert found.keys() == numbers.keys()
  for key, value in numbers.items():
    learner_runs.close(found[key], value, 1e-4)


@pytest.mark.slow
def test_the_kernel_runs_within_pmap(sgd):
  batch, algorithm = learner_runs.packed(), learner_runs.row("grpo")
  config = dataclasses.replace(learner_runs.CONFIG, attention="pallas")
  state, _ = run(batch, algorithm, devices=2, config=config)
  want, _ = learner_runs.run(batch, algorithm)
  learner_runs.close(jax.device_get(pmapped.one(state)), want)


def test_rows_that_do_not_divide_are_refused():
  config = dataclasses.replace(learner_runs.CONFIG, microbatch_rows=6)
  with pytest.raises(ValueError, match="microbatch_rows=6"):
    pmapped.PmapLearner(
      learner_runs.worlds.model(), learner_runs.row("grpo"), config,
      jax.devices()[:4], num_updates=1, seed=0,
    )  # fmt: skip


def test_a_missing_reference_is_named():
  algorithm = learner_runs.row("grpo", kl_coef=0.1)
  with pytest.raises(ValueError, match="reference"):
    run(learner_runs.packed(), algorithm)
