"""The whole update under vmap, and its gradients in its own constants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import learner_runs
import numpy as np
import optax
import pytest
import whole_updates
import worlds
from marks import some

from steppo_jax.learner import learner, optimizers
from steppo_jax.learner import update as update_lib
from steppo_jax.models import mesh

SGD = 0.5


@functools.cache
def off_policy():
  """The batch as if an older policy had sampled it: ratios are not 1."""
  batch = whole_updates.batch()
  # Log-ratios of ±0.07 and ±1 lie well inside and outside of a clip near 0.4.
  gap = jax.random.choice(
    jax.random.key(1),
    jnp.array([-1.0, -0.07, 0.07, 1.0]),
    batch.tokens.tokens.shape,
  )
  logp = batch.tokens.behaviour_logp + gap
  return batch._replace(tokens=batch.tokens.replace(behaviour_logp=logp))


@pytest.fixture(scope="module", autouse=True)
def _played():
  """What is cached is made here: made in a trace, it would hold tracers."""
  worlds.policy(), off_policy()


def run(row, *, seed=0, adam=False, differentiable=False, **options):
  """New state and metrics of one update; any number may be traced."""
  config = dataclasses.replace(whole_updates.CONFIG, **options)
  parts = learner.make_spec(
    worlds.model(), row, config, mesh.make_mesh(1), num_updates=4, seed=seed,
    differentiable=differentiable,
  )  # fmt: skip
  if not adam:
    # Adam's sign of a tiny gradient is a coin that rounding throws.
    plain = optax.sgd(SGD * config.learning_rate)
    parts = parts._replace(policy_optimizer=plain, critic_optimizer=plain)
  return update_lib.update(
    parts, whole_updates.start(parts), None, off_policy()
  )


def moved(row, *, differentiable=True, **options):
  """One number of what an update adds to the parameters, all of them in it."""
  state, _ = run(row, differentiable=differentiable, **options)
  before = whole_updates.start(whole_updates.parts_of(row))
  added = jax.tree.map(
    jnp.subtract,
    (state.policy, state.critic),
    (before.policy, before.critic),
  )
  return sum(
    jnp.vdot(x, jax.random.normal(jax.random.key(i), x.shape))
    for i, x in enumerate(jax.tree.leaves(added))
  )


def slope(function, at, step):
  """Central differences in each entry of a dict of scalars."""
  found = {}
  for name in at:
    up, down = (function(at | {name: at[name] + s * step}) for s in (1.0, -1.0))
    found[name] = (up - down) / (2 * step)
  return found


@pytest.mark.slow
@pytest.mark.parametrize("name", some("steppo", slow=["capo", "ppo", "gigpo"]))
def test_four_runs_in_one_vmap_are_four_runs(name):
  def one(seed, discount, lambda_, clip, rate):
    row = learner_runs.row(
      name, discount=discount, lambda_=lambda_, clip_low=clip, clip_high=clip
    )
    state, found = run(row, seed=seed, learning_rate=rate, actor_epochs=2)
    return state.policy, state.critic, found["policy/policy_loss"]

  settings = (
    np.arange(4),
    np.float32([1, 0.9, 0.5, 0.2]),
    np.float32([1, 0.5, 0.2, 0]),
    np.float32([0.1, 0.2, 0.05, 0.4]),
    np.float32([0.1, 0.02, 0.05, 0.2]),
  )
  many = jax.device_get(jax.jit(jax.vmap(one))(*settings))
  alone = jax.jit(one)
  ends = []
  for i in range(4):
    single = jax.device_get(alone(*[x[i] for x in settings]))
    jax.tree.map(
      lambda x, y, i=i: np.testing.assert_allclose(
        x[i], y, rtol=1e-5, atol=1e-5
      ),
      many,
      single,
    )
    ends.append(whole_updates.distance(single[0], worlds.policy()))
  # They are four different runs, all of which went somewhere.
  assert min(ends) > 1e-3
  assert len(set(ends)) == 4


@pytest.mark.slow
def test_the_seed_alone_makes_another_run():
  row = learner_runs.row("grpo")
  step = lambda seed: run(row, seed=seed, learning_rate=0.2)[0].policy
  many = jax.device_get(jax.jit(jax.vmap(step))(np.array([5, 6, 7])))
  first, same, other = (
    jax.tree.map(lambda x, i=i: x[i], many) for i in range(3)
  )
  # Two mini-batches have two orders: 5 and 6 draw one of them, 7 the other.
  assert whole_updates.distance(first, same) < 1e-6
  assert whole_updates.distance(first, other) > 1e-5


@pytest.mark.slow
def test_adamw_takes_a_traced_learning_rate():
  grads = {"w": np.float32([3.0, -0.2, 0.0])}
  params = {"w": np.zeros(3, np.float32)}

  def two_steps(rate):
    made = optimizers.adamw(rate, 0, whole_updates.CONFIG, 10, eps_root=0.0)
    state = made.init(params)
    _, state = made.update(grads, state, params)
    return made.update(grads, state, params)[0]["w"]

  rates = np.float32([1e-3, 1e-2])
  many = jax.jit(jax.vmap(two_steps))(rates)
  # Equal gradients: AdamW steps by the rate, against their sign.
  for row, rate in zip(many, rates, strict=True):
    np.testing.assert_allclose(row, two_steps(float(rate)), rtol=1e-5)
  np.testing.assert_allclose(many[1], 10 * many[0], rtol=1e-5)
  assert many[0][0] < 0 < many[0][1]


@pytest.mark.slow
def test_an_update_that_can_be_differentiated_is_the_same_update():
  row = learner_runs.row("steppo", clip_low=0.2, clip_high=0.2)
  kinds = [
    jax.device_get(
      jax.jit(
        lambda kind=kind: run(
          row, differentiable=kind, learning_rate=0.1, microbatch_rows=2
        )
      )()
    )
    for kind in (False, True)
  ]
  (a, found_a), (b, found_b) = kinds
  assert whole_updates.distance(a.policy, b.policy) < 1e-6
  assert whole_updates.distance(a.critic, b.critic) < 1e-6
  np.testing.assert_allclose(
    found_a["policy/clip_fraction"], found_b["policy/clip_fraction"], rtol=1e-5
  )


@pytest.mark.slow
def test_parameters_after_an_update_have_gradients_in_its_constants():
  # Tokens clipped before they are pooled: the ratio depends on the clip.
  base = learner_runs.row("steppo", surrogate="log_clip", value_clip=None)

  def result(at):
    row = dataclasses.replace(base, **at)
    return 100 * moved(row, learning_rate=0.01, actor_epochs=2)

  at = {"discount": 0.9, "lambda_": 0.7, "clip_low": 0.4, "clip_high": 0.35}
  at = {name: np.float32(x) for name, x in at.items()}
  grad = jax.device_get(jax.jit(jax.grad(result))(at))
  near = jax.device_get(slope(jax.jit(result), at, 1e-2))
  for name in at:
    assert abs(grad[name]) > 1e-2, name
    # Some tokens cross the clip between the two ends of a difference.
    np.testing.assert_allclose(grad[name], near[name], rtol=8e-2, err_msg=name)


@pytest.mark.slow
def test_steppo_has_gradients_in_discount_and_lambda_and_none_in_its_clip():
  base = learner_runs.row("steppo", value_clip=None)

  def result(at):
    row = dataclasses.replace(base, **at)
    return 100 * moved(row, learning_rate=0.02)

  at = {"discount": 0.9, "lambda_": 0.7, "clip_low": 0.1, "clip_high": 0.1}
  at = {name: np.float32(x) for name, x in at.items()}
  grad = jax.device_get(jax.jit(jax.grad(result))(at))
  near = jax.device_get(slope(jax.jit(result), at, 1e-3))
  for name in ("discount", "lambda_"):
    assert abs(grad[name]) > 1e-2, name
    np.testing.assert_allclose(grad[name], near[name], rtol=5e-2, err_msg=name)
  # A step is inside its clip or outside: its gradient is all or nothing.
  assert grad["clip_low"] == grad["clip_high"] == 0
  assert near["clip_low"] == near["clip_high"] == 0


@pytest.mark.slow
def test_gradients_pass_through_adamw():
  base = learner_runs.row("steppo", clip_low=0.2, clip_high=0.2)

  def result(discount):
    row = dataclasses.replace(base, discount=discount)
    return moved(row, adam=True, actor_epochs=2)

  grad = jax.jit(jax.grad(result))(np.float32(0.9))
  assert np.isfinite(grad)
  assert abs(grad) > 1e-3


@pytest.mark.slow
def test_without_the_option_the_update_has_no_reverse_gradient():
  base = learner_runs.row("grpo")

  def result(clip):
    row = dataclasses.replace(
      base, surrogate="log_clip", ratio="step", clip_high=clip
    )
    return moved(row, differentiable=False, actor_epochs=2)

  with pytest.raises(ValueError, match="Reverse-mode"):
    jax.grad(result)(np.float32(0.2))


@pytest.mark.slow
def test_long_rows_are_differentiable_too():
  # Eight blocks a row, which an update that is not differentiated loops over.
  row = learner_runs.row("steppo")
  change = lambda discount, block: moved(
    dataclasses.replace(row, discount=discount), attention_block=block
  )
  few, many = (
    jax.jit(jax.grad(functools.partial(change, block=block)))(0.9)
    for block in (worlds.CONTEXT, worlds.CONTEXT // 8)
  )
  np.testing.assert_allclose(many, few, rtol=1e-4)
  assert few != 0
