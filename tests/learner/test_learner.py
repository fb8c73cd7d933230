"""The update: exact in every layout, on every device count, by hand."""

import dataclasses

import aligned
import chex
import jax
import numpy as np
import pytest
import worlds
from learner_runs import CONFIG, close, packed, row, run
from marks import some

from steppo_jax.learner import learner, options
from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh
from steppo_jax.packing import options as packing_options
from steppo_jax.packing import rows as packing


@pytest.mark.parametrize("name", some("steppo", slow=["ppo"]))
def test_eight_devices_give_the_update_of_one(name, sgd):
  a, _ = run(packed(), row(name), devices=1)
  b, _ = run(packed(), row(name), devices=8)
  close(a.policy, b.policy)
  close(a.critic, b.critic)


@pytest.mark.slow
def test_the_kernel_gives_the_update_of_the_blocks(sgd):
  kernel = dataclasses.replace(CONFIG, attention="pallas")
  a, _ = run(packed(), row("grpo"))
  b, _ = run(packed(), row("grpo"), devices=2, config=kernel)
  close(a.policy, b.policy)


@pytest.mark.slow
@pytest.mark.parametrize("name", some("grpo", slow=["steppo", "capo", "ppo"]))
def test_microbatches_change_nothing(name, sgd):
  small = dataclasses.replace(CONFIG, microbatch_rows=2)
  a, _ = run(packed("rows"), row(name))
  b, _ = run(packed("rows"), row(name), config=small)
  close(a.policy, b.policy)
  close(a.critic, b.critic)


@pytest.mark.slow
@pytest.mark.parametrize("name", some("grpo", slow=["steppo", "capo", "ppo"]))
def test_padding_weighs_nothing(name, sgd):
  a, _ = run(packed(), row(name))
  b, _ = run(packed(num_steps=256, rows_per_part=32), row(name))
  close(a.policy, b.policy)
  close(a.critic, b.critic)


@pytest.mark.parametrize("name", some("steppo", slow=["capo", "ppo", "grpo"]))
def test_poisoned_padding_changes_nothing(name, sgd):
  batch = packed()
  table, tokens = batch.table, batch.tokens
  unused = ~table.live
  poisoned = batch._replace(
    table=table.replace(reward=np.where(unused, 1e30, table.reward)),
    tokens=tokens.replace(
      behaviour_logp=np.where(
        tokens.step_ids == 0, 1e30, tokens.behaviour_logp
      ).astype(np.float32)
    ),
  )
  a, _ = run(batch, row(name))
  b, _ = run(poisoned, row(name))
  close(a.policy, b.policy, 1e-7)


def test_learner_and_sampler_agree_before_the_first_step():
  _, found = run(packed(), row("steppo"))
  total, count = found["policy/sampler_gap"]
  assert count > 50
  assert total / count < 1e-4
  k3, weight = found["policy/sampler_k3"]
  assert weight == count
  assert 0 <= k3 / count < 1e-8


@pytest.mark.parametrize("held", range(CONFIG.num_minibatches))
def test_the_gap_is_told_where_other_mini_batches_are_empty(held):
  trajectories = worlds.trajectories(2, samples=1)
  config = packing_options.PackingConfig(
    layout="packed", row_length=worlds.CONTEXT
  )
  batch = packing.pack(
    trajectories, [held] * len(trajectories), config,
    num_parts=CONFIG.num_minibatches, rows_multiple=8, pad_id=0,
    num_steps=packed().table.live.shape[0],
    rows_per_part=packed().tokens.tokens.shape[1],
  )  # fmt: skip
  _, found = run(batch, row("steppo"))
  total, count = found["policy/sampler_gap"]
  assert count > 0
  assert total / count < 1e-4


@pytest.mark.slow
def test_the_actor_is_frozen_while_the_critic_warms_up():
  config = dataclasses.replace(CONFIG, critic_warmup=1)
  state, _ = run(packed(), row("steppo"), config=config)
  chex.assert_trees_all_equal(state.policy, worlds.policy())
  assert np.abs(state.critic["head"]["kernel"]).max() > 0
  later, _ = run(packed(), row("steppo"), config=config, updates=2)
  assert not np.array_equal(
    later.policy["final_norm"]["scale"], state.policy["final_norm"]["scale"]
  )


@pytest.mark.slow
def test_the_target_kl_stops_the_policy_and_not_the_critic():
  config = dataclasses.replace(CONFIG, target_kl=1e-9, actor_epochs=3)
  state, found = run(packed(), row("steppo"), config=config)
  # The first step is on-policy: its KL is 0 and it is taken; no other is.
  assert found["policy/stepped"][0] == 1
  assert found["policy/stepped"][1] == 6  # 3 epochs of 2 mini-batches
  assert int(state.update) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", some("steppo", slow=["ppo"]))
def test_the_critic_learns_the_returns_of_a_batch(name):
  config = dataclasses.replace(
    CONFIG,
    critic_epochs=15,
    critic_warmup=3,
    critic_learning_rate=3e-3,
    final_learning_rate=1.0,
  )
  algorithm = row(name, discount=1.0)
  _, first = run(packed(), algorithm, config=config)
  _, last = run(packed(), algorithm, config=config, updates=3)
  unexplained = lambda m: np.divide(*m["critic/unexplained_variance"])
  assert unexplained(first) > 0.9
  assert unexplained(last) < 0.5


@pytest.mark.slow
def test_an_update_compiles_once_per_shape_and_once_for_equal_learners():
  one = mesh.make_mesh(1)

  def compiled():
    made = learner.Learner(
      worlds.model(), row("grpo"), CONFIG, one, num_updates=5, seed=0
    )
    state = made.init(worlds.policy())
    batch = learner_state.put_batch(packed(), one)
    for _ in range(3):
      state, _ = made.update(state, None, batch)
    return made.compiles

  assert [compiled(), compiled()] == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kl_coef", some(0.1, slow=[0.0]))
def test_the_reference_policy_pulls_the_policy_back(kl_coef, sgd):
  one = mesh.make_mesh(1)
  made = learner.Learner(
    worlds.model(), row("grpo", kl_coef=kl_coef), CONFIG, one,
    num_updates=4, seed=0,
  )  # fmt: skip
  _, found = made.update(
    made.init(worlds.policy()), worlds.policy(3),
    learner_state.put_batch(packed(), one),
  )  # fmt: skip
  distance = np.divide(*found["policy/kl_reference"])
  assert distance > 0.01 if kl_coef else distance == 0


def test_options_that_cannot_work_are_refused():
  with pytest.raises(ValueError, match="bootstrap"):
    options.LearnerConfig(bootstrap="nothing")
  with pytest.raises(ValueError, match="num_minibatches"):
    options.LearnerConfig(num_minibatches=0)
  with pytest.raises(ValueError, match="8 devices"):
    learner.Learner(
      worlds.model(), row("grpo"),
      dataclasses.replace(CONFIG, microbatch_rows=4), mesh.make_mesh(8),
      num_updates=1, seed=0,
    )  # fmt: skip
  with pytest.raises(ValueError, match="num_devices=99"):
    mesh.make_mesh(99)


def test_rows_that_are_no_forest_reach_no_device():
  batch = packed()
  parent = batch.tokens.parent.copy()
  parent[0, 0, 3] = 5
  broken = batch._replace(tokens=batch.tokens.replace(parent=parent))
  with pytest.raises(ValueError, match=r"row 0, column 3: .* a cycle"):
    learner_state.put_batch(broken, mesh.make_mesh(1))


@pytest.mark.slow
def test_a_head_on_the_policys_trunk_learns_and_moves_nothing_else():
  config = dataclasses.replace(
    CONFIG, critic_trunk="policy", critic_epochs=8, critic_warmup=99
  )
  state, found = run(packed(), row("steppo"), config=config, updates=2)
  assert set(state.critic) == {"head"}
  assert np.abs(state.critic["head"]["kernel"]).max() > 1e-2
  for x, y in zip(
    jax.tree.leaves(state.policy), jax.tree.leaves(worlds.policy()), strict=True
  ):
    np.testing.assert_array_equal(x, y)
  # What the head says of the policy's trunk after one update explains more.
  _, first = run(packed(), row("steppo"), config=config)
  name = "critic/unexplained_variance"
  assert found[name][0] < 0.99 * first[name][0]


@pytest.mark.slow
def test_a_fresh_head_gives_the_update_of_a_fresh_critic():
  # Both say 0 everywhere, so that the first credit is the same.
  shared = dataclasses.replace(CONFIG, critic_trunk="policy")
  own, _ = run(packed(), row("steppo"))
  head, _ = run(packed(), row("steppo"), config=shared)
  close(own.policy, head.policy)
  with pytest.raises(ValueError, match=r"learner\.critic_trunk='both'"):
    dataclasses.replace(CONFIG, critic_trunk="both")


def test_a_batch_of_the_host_may_be_written_over_at_once():
  whole = packed()
  arrays = (whole.tokens, whole.table, whole.rows_used)
  ours = jax.tree.map(aligned.copy, arrays)
  batch = learner_state.put_batch(
    whole._replace(tokens=ours[0], table=ours[1], rows_used=ours[2]),
    mesh.make_mesh(1),
  )
  aligned.spoil(ours)
  found = (batch.tokens, batch.table, batch.rows_used)
  jax.tree.map(np.testing.assert_array_equal, found, arrays)
