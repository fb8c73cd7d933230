"""Every row of the table through one whole update on real rollouts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import learner_runs
import numpy as np
import pytest
import worlds
from marks import some
from whole_updates import (
  CONFIG,
  batch,
  batch_of,
  distance,
  parts_of,
  policies,
  start,
  updated,
)

from steppo_jax.algorithms import estimators, objective
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import credit, learner, spec
from steppo_jax.learner import update as update_lib
from steppo_jax.models import mesh
from steppo_jax.ops import ratios, segments

ALL = list(algorithms_table.ALGORITHMS)
CRITICS = [name for name in ALL if algorithms_table.get(name).critic]
FAST = ("steppo",)


@pytest.mark.parametrize("name", some(*FAST, slow=ALL))
def test_one_update_moves_the_policy_and_reports_finite_numbers(name):
  row = algorithms_table.get(name)
  made = learner.Learner(
    worlds.model(), row, CONFIG, mesh.make_mesh(1), num_updates=4, seed=0
  )
  reference, teacher = policies(row)
  state, found = made.update(
    made.init(worlds.policy()), reference, batch_of(row), teacher
  )
  state, found = jax.device_get((state, found))
  # AdamW's first steps have the size of the learning rate.
  assert distance(state.policy, worlds.policy()) > 1e-3
  for key, value in found.items():
    assert np.isfinite(np.asarray(value)).all(), key
  assert found["policy/policy_loss"][1] > 0
  assert found["policy/grad_norm"][0] > 0
  assert (state.critic is not None) == (row.critic is not None)
  if row.critic:
    assert distance(state.critic["trunk"], worlds.policy()) > 1e-3
    assert found["critic/value_target"][1] > 0


@pytest.mark.parametrize("name", some(*FAST, slow=ALL))
def test_no_token_that_was_not_sampled_has_a_gradient(name):
  # The credit of the update itself, with segments, teacher and reference.
  row = dataclasses.replace(algorithms_table.get(name), entropy_coef=0.01)
  parts = parts_of(row)
  reference, teacher = policies(row)
  assign = functools.partial(credit.assign, parts)
  found = jax.jit(assign)(start(parts), reference, batch_of(row), teacher)
  flat, table = credit.flat_rows(found.batch.tokens), found.batch.table
  steps = table.live.shape[0]
  count = segments.step_count(flat.step_ids, num_steps=steps)
  np.testing.assert_array_equal(table.num_tokens, count)
  ref_logp, focus = (
    None if x is None else x.reshape(flat.tokens.shape)
    for x in (found.ref_logp, found.weight)
  )
  logits = jax.random.normal(jax.random.key(0), (*flat.tokens.shape, 4))
  # Ratios near 1, so that no clip hides a gradient.
  logp = jax.nn.log_softmax(logits)[..., 0]
  flat = flat.replace(behaviour_logp=logp)

  def loss(logits):
    logp = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    z = ratios.log_ratio(logp[..., 0], flat.behaviour_logp, flat.step_ids > 0)
    total, number = ratios.log_ratio_mean(z, flat.step_ids)
    (total, weight), _ = objective.policy_loss(
      row, found.advantages.advantage, logp[..., 0], entropy, flat, table,
      mu=total / number, ref_logp_t=ref_logp, weight_t=focus,
    )  # fmt: skip
    return total / weight

  grad = np.asarray(jax.jit(jax.grad(loss))(logits))
  sampled = np.asarray(flat.step_ids) > 0
  assert 50 < sampled.sum() < sampled.size / 2
  np.testing.assert_array_equal(grad[~sampled], 0)
  assert (np.abs(grad[sampled]).max(axis=-1) > 0).mean() > 0.9


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("grpo", r"needs reference, which.*algorithm\.kl_coef=0"),
    ("rloo", "needs reference"),
    ("serl", r"needs reference, teacher, which.*algorithm\.teacher"),
  ],
)
def test_a_policy_that_is_missing_is_named_before_anything_compiles(
  name, message
):
  made = learner.Learner(
    worlds.model(), algorithms_table.get(name), CONFIG, mesh.make_mesh(1),
    num_updates=4, seed=0,
  )  # fmt: skip
  with pytest.raises(ValueError, match=message):
    made.update(made.init(worlds.policy()), None, batch())


def test_rows_that_make_no_whole_microbatches_are_refused():
  parts = parts_of(learner_runs.row("grpo"), microbatch_rows=3)
  with pytest.raises(ValueError, match=r"not a multiple of.*microbatch_rows=3"):
    update_lib.update(parts, start(parts), None, batch())


@pytest.mark.slow
@pytest.mark.parametrize("name", some("serl", slow=["stepopsd", "agentopsd"]))
def test_a_teacher_that_is_the_policy_leaves_grpo(name):
  row = dataclasses.replace(algorithms_table.get(name), kl_coef=0.0)
  plain, _ = updated(learner_runs.row("grpo"))
  same, _ = updated(row, teacher=worlds.policy())
  other, _ = updated(row, teacher=worlds.policy(2))
  # Gap 0 gives weight 1: exp 0, and twice the sigmoid of 0.
  assert distance(plain.policy, same.policy) < 1e-6
  assert distance(plain.policy, other.policy) > 1e-5


@pytest.mark.slow
def test_rloo_pays_for_its_distance_from_the_reference():
  row = algorithms_table.get("rloo")
  free = dataclasses.replace(
    row, options=(("singleton", "zero"), ("kl_reward", 0.0))
  )

  @functools.cache
  def assigner(row):
    parts = parts_of(row)
    run = jax.jit(functools.partial(credit.assign, parts))
    return lambda reference: (
      run(start(parts), reference, batch(), None).advantages.advantage
    )

  here = assigner(row)(worlds.policy())
  far = assigner(row)(worlds.policy(1))
  unpaid = assigner(free)(worlds.policy(1))
  # The policy is its own reference: nothing to pay.
  np.testing.assert_allclose(here, unpaid, atol=1e-6)
  assert np.abs(far - unpaid).max() > 1e-3


@pytest.mark.slow
def test_segments_are_cut_where_the_policy_is_unsure():
  row = algorithms_table.get("sapo_segment")

  def assigned(share):
    parts = parts_of(dataclasses.replace(row, segment_share=share))
    run = jax.jit(functools.partial(credit.assign, parts))
    return run(start(parts), None, batch(), None)

  found = assigned(row.segment_share)
  before, after = batch().table, found.batch.table
  sampled = int((batch().tokens.step_ids > 0).sum())
  cuts = int(after.live.sum()) - int(before.live.sum())
  # 30 % of the tokens end a segment; the last of a step does anyway.
  assert 0.1 * sampled < cuts <= 0.3 * sampled
  np.testing.assert_array_equal(
    found.batch.tokens.step_ids > 0, batch().tokens.step_ids > 0
  )
  np.testing.assert_allclose(
    after.reward[after.live].sum(), before.reward[before.live].sum(), rtol=1e-5
  )
  # Without a cut a segment is a step.
  credit_of = lambda made: np.asarray(
    segments.to_tokens(
      made.advantages.advantage, credit.flat_rows(made.batch.tokens).step_ids
    )
  )
  none, whole = credit_of(assigned(0.0)), credit_of(assigned(None))
  np.testing.assert_allclose(none, whole, atol=1e-6)
  assert np.abs(credit_of(found) - whole).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", some("steppo", slow=CRITICS))
def test_every_critic_knows_three_ends_of_a_truncated_episode(name):
  table = batch().table
  assert (table.truncated & table.live).sum() >= 10
  found = {}
  for mode in estimators.BOOTSTRAPS:
    parts = parts_of(algorithms_table.get(name), bootstrap=mode)
    made = jax.jit(functools.partial(credit.assign, parts))(
      start(parts), worlds.policy(1), batch_of(parts.algorithm), None
    )
    pair = made.advantages
    assert np.isfinite(pair.advantage).all()
    targets = jax.tree.leaves(pair.target)
    assert all(np.isfinite(target).all() for target in targets)
    found[mode] = np.asarray(targets[0]), np.asarray(made.batch.table.live)
  assert np.abs(found["value"][0] - found["zero"][0]).max() > 0.1
  live, ended = found["value"][1], np.asarray(table.truncated)
  assert found["drop_last"][1].sum() == live.sum() - (live & ended).sum()


@pytest.mark.slow
def test_a_dropped_step_trains_nothing():
  # Every episode is cut: five steps of each make four.
  _, whole = updated(learner_runs.row("steppo"))
  _, cut = updated(learner_runs.row("steppo"), bootstrap="drop_last")
  live = int(batch().table.live.sum())
  ended = int((batch().table.truncated & batch().table.live).sum())
  assert whole["critic/value"][1] == live
  assert cut["critic/value"][1] == live - ended


@pytest.mark.slow
@pytest.mark.parametrize("name", some("grpo", slow=["steppo"]))
def test_each_weighting_counts_what_it_names(name):
  # Weights of one mini-batch each, summed over both.
  table, ids = batch().table, np.asarray(batch().tokens.step_ids)
  acted = np.unique(ids[ids > 0])
  expected = {
    "token": (ids > 0).sum(),
    "step": len(acted),
    "trajectory": len(np.unique(np.asarray(table.trajectory)[acted])),
  }
  states = {}
  for weighting, count in expected.items():
    row = algorithms_table.weighted(learner_runs.row(name), weighting)
    states[weighting], found = updated(row)
    weight = found["policy/policy_loss"][1]
    np.testing.assert_allclose(weight, count, rtol=1e-5)
  own = {"steppo": "step", "grpo": "token"}[name]
  plain, _ = updated(learner_runs.row(name))
  assert distance(plain.policy, states[own].policy) < 1e-7
  token, step, trajectory = (states[x].policy for x in expected)
  assert distance(token, step) > 1e-6
  # All episodes are cut after as many steps: their means are one mean.
  assert distance(step, trajectory) < 1e-6


@pytest.mark.slow
def test_a_frozen_trunk_is_computed_once_and_gives_the_same(monkeypatch):
  # This row also reads the entropy of the policy before the update.
  row = algorithms_table.get("sapo_segment")
  parts = parts_of(row, critic_trunk="policy", critic_epochs=2)
  reference, _ = policies(row)

  def run():
    update = jax.jit(functools.partial(update_lib.update, parts))
    compiled = update.lower(start(parts), reference, batch()).compile()
    return compiled, compiled(start(parts), reference, batch())

  once, found = run()
  monkeypatch.setattr(spec.UpdateSpec, "keeps", lambda *_: False)
  again, want = run()
  learner_runs.close(jax.device_get(found), jax.device_get(want), 1e-6)
  # The compiler counts what a loop holds once: two passes of many are gone.
  flops = [x.cost_analysis()["flops"] for x in (once, again)]
  assert flops[0] < 0.95 * flops[1]
