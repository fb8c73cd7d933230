"""Modes of whole updates: off or without cause they change nothing."""

import dataclasses
import functools

import jax
import learner_runs
import numpy as np
import pytest
import whole_updates
import worlds
from marks import some

from steppo_jax.algorithms import objective, options
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import credit
from steppo_jax.learner import update as update_lib
from steppo_jax.ops import shaping

same = np.testing.assert_array_equal


def assigned(row, batch=None, update=0):
  parts = whole_updates.parts_of(row)
  start = whole_updates.start(parts).replace(update=np.int32(update))
  run = jax.jit(functools.partial(credit.assign, parts))
  reference = worlds.policy(1) if row.reads_reference else None
  return run(start, reference, batch or whole_updates.batch(), None)


@functools.cache
def centred():
  """The batch as if the policy before the update had sampled it."""
  made = assigned(learner_runs.row("grpo", rollout_correction="tis_token"))
  logp = made.acting.tokens.behaviour_logp
  batch = whole_updates.batch()
  tokens = batch.tokens.replace(behaviour_logp=logp)
  return batch._replace(tokens=tokens)


def updated(row, batch):
  import optax

  parts = whole_updates.parts_of(row)._replace(
    policy_optimizer=optax.sgd(0.05), critic_optimizer=optax.sgd(0.05)
  )
  run = jax.jit(functools.partial(update_lib.update, parts))
  return jax.device_get(run(whole_updates.start(parts), None, batch))


@pytest.mark.slow
@pytest.mark.parametrize("kind", some("tis_token", slow=["icepop"]))
def test_a_sampler_that_agrees_makes_decoupled_ppo_the_plain_one(kind):
  plain, _ = updated(learner_runs.row("grpo"), centred())
  row = learner_runs.row("grpo", rollout_correction=kind)
  decoupled, found = updated(row, centred())
  assert whole_updates.distance(plain.policy, worlds.policy()) > 1e-4
  assert whole_updates.distance(plain.policy, decoupled.policy) < 1e-6
  assert found["policy/behaviour_gap"][0] < 1e-3


@pytest.mark.slow
def test_decoupled_ppo_clips_around_the_policy_before_the_update():
  # The sampler was half as sure of every token: z = log 2 at each.
  batch = centred()
  logp = batch.tokens.behaviour_logp - np.log(2.0).astype(np.float32)
  old = batch._replace(tokens=batch.tokens.replace(behaviour_logp=logp))
  row = functools.partial(learner_runs.row, "grpo")
  found = assigned(row(rollout_correction="tis_token", rollout_high=9.0), old)
  ids = np.asarray(old.tokens.step_ids)
  np.testing.assert_allclose(np.asarray(found.weight)[ids > 0], 2, rtol=1e-5)
  same(np.asarray(found.weight)[ids == 0], 0)
  np.testing.assert_allclose(
    np.asarray(found.acting.tokens.behaviour_logp)[ids > 0],
    np.asarray(batch.tokens.behaviour_logp)[ids > 0],
    atol=1e-5,
  )
  capped = assigned(row(rollout_correction="tis_token", rollout_high=1.5), old)
  np.testing.assert_allclose(np.asarray(capped.weight)[ids > 0], 1.5)
  # Outside of the band nothing is left; a step's product is far outside.
  gone = assigned(row(rollout_correction="geometric", rollout_high=1.9), old)
  same(gone.weight, 0 * ids)


@pytest.mark.slow
def test_old_steps_train_the_critic_alone():
  batch = whole_updates.batch()
  table = batch.table
  version = np.where(np.arange(len(table.live)) % 2, 5, 2).astype(np.int32)
  batch = batch._replace(table=table.replace(version=version))
  row = learner_runs.row("ppo", max_staleness=1)
  found = assigned(row, batch, update=6)
  ids = np.asarray(batch.tokens.step_ids)
  kept = np.where(ids % 2, ids, 0)
  same(found.acting.tokens.step_ids, kept)
  same(found.batch.tokens.step_ids, ids)
  same(np.asarray(found.acting.table.num_tokens)[2::2], 0)
  stale, acted = found.metrics["batch/stale"]
  assert 0 < stale < acted
  fresh = assigned(row, batch, update=3)
  same(fresh.acting.tokens.step_ids, ids)
  untold = batch._replace(table=table.replace(version=None))
  with pytest.raises(ValueError, match=r"max_staleness needs table\.version"):
    assigned(row, untold)


@pytest.mark.slow
def test_long_responses_pay_and_advantages_have_bounds():
  plain = assigned(learner_runs.row("steppo"))
  # Credit is the reward alone: γ = 0 with a critic of no opinion would be it.
  row = learner_runs.row("steppo", overlong_length=8, overlong_cache=4)
  paid = assigned(row)
  table = whole_updates.batch().table
  penalty = shaping.overlong_penalty(table.num_tokens, max_length=8, cache=4)
  assert penalty[table.live].min() == -1
  np.testing.assert_allclose(
    paid.batch.table.reward, table.reward + np.where(table.live, penalty, 0)
  )
  assert np.abs(paid.advantages.target - plain.advantages.target).max() > 0.5
  held = assigned(learner_runs.row("steppo", advantage_clip=0.5))
  np.testing.assert_allclose(
    held.advantages.advantage, np.clip(plain.advantages.advantage, -0.5, 0.5)
  )
  same(held.advantages.target, plain.advantages.target)


def loss_of(row, z, advantage):
  """Loss and gradient where every token of a step has the log-ratio z[k]."""
  tokens, table = small()
  ids = tokens.step_ids

  def loss(logp):
    (total, weight), _ = objective.policy_loss(
      row, np.asarray(advantage, np.float32), logp, 0 * logp, tokens, table,
      mu=0.0, ref_logp_t=None,
    )  # fmt: skip
    return total / weight

  logp = np.asarray(z, np.float32)[ids]
  return jax.value_and_grad(loss)(logp)


def small():
  import base_batch

  return base_batch.small([2, 3, 1])


@pytest.mark.slow
def test_a_step_that_is_rare_already_is_left_in_peace():
  # Steps 1 to 3: gone far, gone far but wanted, near.
  row = learner_runs.row("grpo", sequence_mask=0.3, clip_low=0.9)
  z, advantage = [0, -0.5, -0.5, -0.1], [0, -1, 1, -1]
  _, grad = loss_of(row, z, advantage)
  ids = small()[0].step_ids
  moved = [bool(np.asarray(grad)[ids == k].any()) for k in (1, 2, 3)]
  assert moved == [False, True, True]
  free = dataclasses.replace(row, sequence_mask=None)
  assert np.asarray(loss_of(free, z, advantage)[1])[ids == 1].any()


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["cispo", "soft"])
def test_smooth_surrogates_stand_on_the_grain_of_steps(surrogate):
  row = learner_runs.row(
    "gspo", surrogate=surrogate, clip_low=0.2, clip_high=0.2, tau=(1.0, 1.0)
  )
  z, advantage = [0, 0.1, 0.4, -0.4], [0, 1, 2, -1]
  _, grad = loss_of(row, z, advantage)
  ids = small()[0].step_ids
  for k, length in ((1, 2), (2, 3), (3, 1)):
    ratio = np.exp(z[k])
    gate = {
      "cispo": np.clip(ratio, 0.8, 1.2),
      # 4 sigmoid' at w - 1, and w for the gradient of the ratio.
      "soft": 4 * ratio * np.exp(1 - ratio) / (1 + np.exp(1 - ratio)) ** 2,
    }[surrogate]
    want = -gate * advantage[k] / length / 3
    np.testing.assert_allclose(np.asarray(grad)[ids == k], want, rtol=1e-5)


@pytest.mark.slow
def test_the_weight_of_the_kl_follows_its_target():
  row = dataclasses.replace(
    algorithms_table.get("grpo"), kl_coef=0.1, kl_target=1e-9
  )
  far, found = whole_updates.updated(row, reference=worlds.policy(1))
  # The error is cut off at 0.2, a tenth of which is added.
  np.testing.assert_allclose(far.kl_coef, 0.102, rtol=1e-6)
  assert found["policy/kl_coef"][0] == np.float32(0.1)
  row = dataclasses.replace(row, kl_target=1e9)
  near, _ = whole_updates.updated(row, reference=worlds.policy(1))
  np.testing.assert_allclose(near.kl_coef, 0.098, rtol=1e-6)
  fixed = dataclasses.replace(row, kl_target=None)
  plain, _ = whole_updates.updated(fixed, reference=worlds.policy(1))
  assert plain.kl_coef is None
  jax.tree.map(same, plain.policy, near.policy)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"rollout_high": 0.5}, "rollout_high=0.5 must lie around 1"),
    ({"advantage_clip": 0.0}, "advantage_clip=0 must be above 0"),
    ({"max_staleness": -1}, "max_staleness=-1 must be at least 0"),
    ({"overlong_cache": 4}, "overlong_cache=4 are set together"),
    ({"overlong_length": 4, "overlong_cache": 5}, "are set together"),
    ({"kl_target": 0.1, "kl_coef": 0.0}, "multiplies kl_coef, which is 0"),
    ({"rollout_correction": "tis"}, "'tis' is none of tis_token"),
  ],
)
def test_modes_that_cannot_be_meant_are_refused(given, message):
  with pytest.raises(ValueError, match=message):
    options.AlgorithmConfig(name="grpo", **given).row()
