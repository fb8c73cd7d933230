"""Models of one's own under the update: any tree, any two functions."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_records import TWO_STEPS, step, trajectory
from marks import some

import steppo_jax as sj
from steppo_jax.learner import learner
from steppo_jax.models import lora, mesh
from steppo_jax.models.options import LoraConfig
from steppo_jax.ops import aggregation, floats

ROOT = pathlib.Path(__file__).parents[2]


def example(name):
  path = ROOT / "experiments" / "research" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
def test_the_example_learns_what_it_is_paid_for():
  rewards, policy = example("own_model").train(20)
  # A random answer repeats a colour in a fifth of its tokens.
  assert rewards[0] < 0.35
  assert np.mean(rewards[-3:]) > 0.6
  assert isinstance(policy, tuple)


def _batch(ids=12):
  played = [
    TWO_STEPS,
    trajectory([step([5, 6], [7], uid="b", end="terminated")], uid="b"),
  ]
  return sj.packing.pack(
    played, [0, 1], sj.packing.PackingConfig(row_length=ids), num_parts=2,
    rows_multiple=1, pad_id=0,
  )  # fmt: skip


CONFIG = sj.LearnerConfig(
  num_minibatches=2, microbatch_rows=1, critic_warmup=0, warmup_steps=0,
  critic_warmup_steps=0,
)  # fmt: skip


def _table(policy, rows):
  table = jax.tree.leaves(policy)[0]
  before = jnp.take_along_axis(rows.tokens, rows.parent, axis=1)
  logp = jax.nn.log_softmax(table[before])
  entropy = -(jnp.exp(logp) * logp).sum(-1)
  return jnp.take_along_axis(logp, rows.tokens[..., None], 2)[..., 0], entropy


def _value(critic, rows):
  return critic[7][0][rows.tokens]


@pytest.mark.parametrize(
  "wrap",
  some(
    lambda x: x, lambda x: {"a": ({0: x}, None)},
    slow=[
      lambda x: (x,), lambda x: [x], lambda x: {3: x}, lambda x: {"kernel": x},
    ],
  ),
)  # fmt: skip
def test_any_tree_of_parameters_is_a_policy(wrap):
  start = wrap(jnp.zeros((12, 12)))
  assert not lora.has(start)
  row = dataclasses.replace(sj.ALGORITHMS["steppo"], kl_coef=0.0)
  made = learner.Learner(
    sj.Model(_table, _value), row, CONFIG, mesh.make_mesh(1), num_updates=2,
    seed=0,
  )  # fmt: skip
  # A critic is any tree, too.
  state = made.init(start, {7: (jnp.zeros(12),)})
  state, _ = made.update(state, None, sj.put_batch(_batch(), mesh.make_mesh(1)))
  assert jax.tree.structure(state.policy) == jax.tree.structure(start)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(state.policy))
  assert np.abs(state.critic[7][0]).max() > 0


def test_a_critic_that_is_missing_is_named():
  with pytest.raises(ValueError, match=r"give Model.*values="):
    sj.make_parts(sj.Model(_table), "steppo")
  parts = sj.make_parts(sj.Model(_table, _value), "steppo")
  with pytest.raises(ValueError, match="critic="):
    sj.init(parts, (jnp.zeros((12, 12)),))


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"lora": LoraConfig(rank=4)}, r"lora\.rank=4"),
    ({"critic_layers": 2}, r"critic_layers=2"),
    ({"critic_trunk": "policy"}, r"critic_trunk=policy"),
    (
      {"critic_lora": LoraConfig(rank=3), "critic_trunk": "policy"},
      r"critic_lora\.rank=3",
    ),
  ],
)
def test_options_that_change_our_decoder_alone_are_refused(changes, named):
  config = dataclasses.replace(CONFIG, **changes)
  with pytest.raises(ValueError, match=named + ".* changes our decoder"):
    sj.make_parts(sj.Model(_table, _value), "steppo", config)


def _first_reward(batch, table, value_bt, extras, *, discount, lambda_, bonus):
  del batch, value_bt, extras, lambda_
  return sj.batch.Advantages(
    advantage=discount * table.reward + bonus, target=None
  )


def _plain(row, z, advantage, logp_t, batch):
  del row, logp_t, batch
  return -jnp.exp(z) * advantage, jnp.zeros(z.shape, bool), z


def _half(x_t, step_ids, count_k, trajectory_k, *, constant):
  del count_k, trajectory_k
  total, weight = aggregation.token_mean(x_t, step_ids)
  return total, weight * floats.constant(constant, weight.dtype)


def test_functions_of_ones_own_are_rows():
  sj.register("estimator", "first_reward", _first_reward)
  sj.register("surrogate", "plain", _plain)
  sj.register("aggregation", "half", _half)
  sj.register("aggregation", "half", _half)  # Again is no fault.
  row = sj.Algorithm(
    "first_reward", "here", "reconstruction", options=(("bonus", 2.0),),
    discount=0.5, surrogate="plain", aggregation="half", constant=4.0,
  )  # fmt: skip
  packed = _batch()
  rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), packed.tokens)
  found = sj.objective.advantages(row, rows, packed.table, None, None)
  np.testing.assert_allclose(found.advantage[1:4], [2, 2.25, 2])
  logp = jnp.asarray(rows.behaviour_logp)
  (total, weight), _ = sj.objective.policy_loss(
    row, found.advantage, logp, jnp.zeros_like(logp), rows, packed.table,
    mu=None, ref_logp_t=None,
  )  # fmt: skip
  # Tokens 2, 1 and 1 of the three steps, at a ratio of 1.
  np.testing.assert_allclose(total, -(2 * 2 + 2.25 + 2))
  assert weight == 4 * 4.0
  sj.make_parts(sj.Model(_table), row)
  with pytest.raises(ValueError, match="'half' is there already"):
    sj.register("aggregation", "half", _plain)
  with pytest.raises(ValueError, match="none of estimator, surrogate"):
    sj.register("loss", "half", _half)
  wrong = dataclasses.replace(row, surrogate="plane")
  with pytest.raises(ValueError, match="'plane', did you mean 'plain'"):
    sj.make_parts(sj.Model(_table), wrong)


def _episodes(empty, rewards):
  """Two episodes of one step each in a group, with or without an answer."""
  return [
    trajectory(
      [step([5, 6], [] if gone else [7, 8], uid=uid, end="terminated",
            reward=reward)],
      uid=uid,
    )
    for uid, gone, reward in zip("ab", empty, rewards, strict=True)
  ]  # fmt: skip


# Which answers are empty, rewards, and the mini-batch of each episode.
EMPTY = {
  "no_action": ([True, True], [1.0, 0.0], [0, 1]),
  "one_action": ([False, True], [1.0, 0.0], [0, 1]),
  "a_mini_batch_of_nothing": ([False, False], [1.0, 0.0], [0, 0]),
  "nothing_to_learn": ([False, False], [1.0, 1.0], [0, 1]),
  "no_reward": ([False, False], [0.0, 0.0], [0, 1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", some("grpo", slow=["steppo"]))
def test_empty_parts_leave_finite_parameters_metrics_and_gradients(name):
  row = dataclasses.replace(sj.ALGORITHMS[name], kl_coef=0.0)

  def trained(rate, batch):
    config = dataclasses.replace(CONFIG, learning_rate=rate)
    parts = sj.make_parts(
      sj.Model(_table, _value), row, config, num_updates=2, differentiable=True
    )
    state = sj.init(parts, (jnp.zeros((12, 12)),), {7: (jnp.zeros(12),)})
    for _ in range(2):
      state, found = sj.update(parts, state, None, batch)
    ends = jax.tree.leaves((state.policy, state.critic))
    return sum((x * jnp.arange(12.0)).sum() for x in ends), found

  both = jax.jit(jax.value_and_grad(trained, has_aux=True))
  for case, (empty, rewards, part) in EMPTY.items():
    packed = sj.packing.pack(
      _episodes(empty, rewards), part, sj.packing.PackingConfig(row_length=12),
      num_parts=2, rows_multiple=2, pad_id=0,
    )  # fmt: skip
    batch = sj.put_batch(packed, mesh.make_mesh(1))
    (total, found), slope = both(jnp.float32(0.1), batch)
    assert np.isfinite(total), case
    assert np.isfinite(slope), case
    for key, number in found.items():
      assert np.isfinite(number).all(), f"{case}: {key}"
    moved = case in ("one_action", "a_mini_batch_of_nothing")
    assert (total != 0) == (moved or (name == "steppo" and any(rewards))), case


@pytest.mark.slow
def test_an_update_needs_no_implicit_promotion():
  parts = sj.make_parts(sj.Model(_table, _value), "steppo", CONFIG)
  home = jax if hasattr(jax, "enable_x64") else jax.experimental
  with (
    home.enable_x64(True),
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    wide = lambda *shape: jnp.zeros(shape, jnp.float64)
    state = sj.init(parts, (wide(12, 12),), {7: (wide(12),)})
    step = jax.jit(lambda *x: sj.update(parts, *x))
    state, found = step(
      state, (wide(12, 12),), sj.put_batch(_batch(), parts.mesh)
    )
  ends = jax.tree.leaves((state.policy, state.critic))
  assert {x.dtype for x in ends} == {np.dtype("f8")}
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.models
def test_an_equinox_module_is_a_policy():
  rewards, _ = example("equinox_model").train(25)
  assert rewards[0] < 0.35
  assert np.mean(rewards[-3:]) > 0.5
