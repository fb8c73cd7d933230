"""The optimizers: axes, layers, averages and types, against slow loops."""

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

from steppo_jax.learner import learner, optimizers
from steppo_jax.learner import options as learner_options
from steppo_jax.learner import spec as spec_lib
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.models import heads, lora, mesh, transformer

MODEL = dataclasses.replace(worlds.model(), num_layers=2)
# No clipping, no warm-up and no decay, so that loops stay short.
CONFIG = dataclasses.replace(
  learner_runs.CONFIG, max_grad_norm=1e9, final_learning_rate=1.0
)
RATE = 0.01
ADAPTERS = learner_options.LoraConfig(
  rank=2, targets=("layers/q/kernel", "layers/down/kernel")
)


def made(name, **changes):
  config = dataclasses.replace(CONFIG, optimizer=name, **changes)
  return optimizers.make(RATE, 0, config, 10, eps_root=0.0)


@functools.cache
def trees():
  """What optimizers are given: a policy, adapters, critics of both kinds."""
  policy = gradients(transformer.abstract_params(MODEL), 99)
  return {
    "policy": policy,
    "adapters": lora.split(lora.add(policy, ADAPTERS, jax.random.key(1)))[0],
    "head": heads.init_critic(policy, own_trunk=False),
  }


def gradients(tree, seed):
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.normal(size=x.shape).astype(x.dtype)
  return jax.tree.map(draw, tree)


def stepped(optimizer, params, count):
  """Parameters and state after steps with random gradients."""

  @jax.jit
  def all_of_them(params, drawn):
    state = optimizer.init(params)
    one = lambda carry, grads: (
      optimizers.step(optimizer, grads, carry[1], carry[0]),
      None,
    )
    return jax.lax.scan(one, (params, state), drawn)[0]

  drawn = [gradients(params, seed) for seed in range(count)]
  return all_of_them(params, jax.tree.map(lambda *x: np.stack(x), *drawn))


@pytest.mark.parametrize("name", learner_options.OPTIMIZERS)
@pytest.mark.parametrize("kind", ["adapters", "head"])
def test_adapters_and_heads_are_moved_down_their_gradient(name, kind):
  params = trees()[kind]
  after, _ = stepped(made(name), params, 1)
  slope = jax.tree.map(
    lambda x, y, g: np.vdot(y - x, g), params, after, gradients(params, 0)
  )
  assert all(s < 0 for s in jax.tree.leaves(slope)), slope


@pytest.mark.parametrize("name", learner_options.OPTIMIZERS)
def test_what_is_remembered_of_bfloat16_is_float32(name):
  few = {"head": trees()["head"]["head"]}
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), few)
  after, state = stepped(made(name), low, 2)
  assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype(jnp.bfloat16)}
  kinds = {x.dtype for x in jax.tree.leaves(state)}
  assert kinds == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
  assert (
    jax.tree.leaves(optimizers.evaluated(state, after))[0].dtype == "bfloat16"
  )


def test_an_average_of_bfloat16_squares_falls_again():
  params = {"w": jnp.zeros(1, jnp.bfloat16)}
  grads = {"w": jnp.full((61, 1), 0.1, jnp.bfloat16).at[0].set(100.0)}

  def squares(optimizer):
    def one(state, grad):
      _, state = optimizer.update(grad, state, params)
      return state, optax.tree.get(state, "nu")["w"][0]

    return jax.lax.scan(one, optimizer.init(params), grads)[1]

  seen = np.float32(jax.jit(lambda: squares(made("adamw")))())
  # 0.01 of 100² to begin with, 0.99 of it left after each step.
  np.testing.assert_allclose(seen[0], 100.0, rtol=1e-3)
  np.testing.assert_allclose(seen[-1], 100 * 0.99**60, rtol=1e-2)
  # Optax alone: 0.999 of 10 is 10 in bfloat16, for ever.
  alone = np.float32(jax.jit(lambda: squares(optax.adamw(RATE, b2=0.999)))())
  assert alone[-1] == alone[0] > 9


def test_adamw_is_what_it_was_to_the_bit():
  params = trees()["adapters"]
  config = dataclasses.replace(
    CONFIG, max_grad_norm=1.0, weight_decay=0.1, final_learning_rate=0.1
  )
  schedule = optax.join_schedules(
    [
      optax.linear_schedule(0, RATE, 2),
      optax.linear_schedule(RATE, RATE / 10, 8),
    ],
    [2],
  )
  by_hand = optax.chain(
    optimizers._clipped(1.0),
    optax.adamw(schedule, b2=0.99, weight_decay=0.1),
  )
  now = optimizers.make(RATE, 2, config, 10, eps_root=0.0)
  jax.tree.map(
    np.testing.assert_array_equal,
    stepped(now, params, 3), stepped(by_hand, params, 3),
  )  # fmt: skip


def orthogonal(matrix):
  """Newton and Schulz's iteration, five times, as Jordan's Muon has it."""
  x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
  x = x / np.linalg.norm(x)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon_loop(matrices):
  """Steps of Muon on the gradients of one matrix, in float64."""
  moment, steps = 0.0, []
  for t, g in enumerate(matrices, 1):
    moment = 0.95 * moment + 0.05 * g
    ahead = 0.95 * moment / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
    even = 0.2 * max(g.shape) ** 0.5
    steps.append(-RATE * even * orthogonal(ahead))
  return steps


def test_muon_turns_each_layer_by_itself_and_nothing_else():
  for kind in ("policy", "adapters"):
    params = trees()[kind]
    after, _ = stepped(made("muon"), params, 3)
    drawn = [gradients(params, seed) for seed in range(3)]
    rest = optax.adamw(RATE, b2=0.99, weight_decay=0.0, nesterov=True)
    plain, _ = stepped(rest, params, 3)
    turned = []
    leaves = jax.tree_util.tree_leaves_with_path(after)
    for (path, leaf), start, adam, *grads in zip(
      leaves, *map(jax.tree.leaves, (params, plain, *drawn)), strict=True
    ):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      moved = np.asarray(leaf - start)
      if "layers" in name and "norm" not in name:
        turned.append(name)
        for layer in range(2):
          grads64 = [np.float64(g[layer]) for g in grads]
          want = np.sum(muon_loop(grads64), axis=0)
          np.testing.assert_allclose(
            moved[layer], want, atol=2e-5, err_msg=name
          )
      else:
        np.testing.assert_allclose(leaf, adam, atol=1e-6, err_msg=name)
    assert len(turned) == {"policy": 7, "adapters": 4}[kind]


def test_a_step_of_muon_is_as_large_as_one_of_adamw():
  kernel = trees()["policy"]["layers"]["up"]["kernel"]
  params = {"layers": {"up": {"kernel": kernel}}}
  sizes = {}
  for name in ("adamw", "muon"):
    after, _ = stepped(made(name), params, 1)
    moved = after["layers"]["up"]["kernel"] - kernel
    sizes[name] = float(jnp.sqrt(jnp.mean(moved**2)))
  assert sizes["adamw"] == pytest.approx(RATE, rel=1e-3)
  assert sizes["muon"] == pytest.approx(0.2 * RATE, rel=0.3)


def test_weight_decay_is_the_rate_times_the_parameter_for_all():
  params = {"layers": {"q": {"kernel": jnp.ones((2, 4, 4))}}, "b": jnp.ones(3)}
  zero = jax.tree.map(jnp.zeros_like, params)
  for name in learner_options.OPTIMIZERS:
    optimizer = made(name, weight_decay=0.5)
    step = jax.jit(
      lambda x, o=optimizer: optimizers.step(o, zero, o.init(x), x)
    )
    after, _ = step(params)
    for leaf in jax.tree.leaves(after):
      np.testing.assert_allclose(leaf, 1 - RATE * 0.5, rtol=1e-5, err_msg=name)


def test_adafactor_keeps_rows_and_columns_of_each_layer_by_itself():
  params = {"layers": {"q": {"kernel": jnp.zeros((3, 128, 130))}}}
  after, state = stepped(made("adafactor"), params, 2)
  sizes = {x.shape for x in jax.tree.leaves(state)}
  assert {(3, 128), (3, 130)} <= sizes
  assert (3, 128, 130) not in sizes
  alone = optax.adafactor(RATE, multiply_by_parameter_scale=False)
  step = jax.jit(alone.update)
  for layer in range(3):
    of_layer = jnp.zeros((128, 130))
    kept = alone.init(of_layer)
    for seed in range(2):
      grad = gradients(params, seed)["layers"]["q"]["kernel"][layer]
      change, kept = step(grad, kept, of_layer)
      of_layer = of_layer + change
    np.testing.assert_allclose(
      after["layers"]["q"]["kernel"][layer], of_layer, atol=1e-7
    )


def test_the_average_of_schedule_free_is_what_is_evaluated():
  params = {"w": jnp.float32([1.0, -2.0])}
  after, state = stepped(made("schedule_free"), params, 5)
  z, square, seen = np.float64([1.0, -2.0]), 0.0, []
  for t in range(5):
    grad = np.float64(gradients(params, t)["w"])
    square = 0.99 * square + 0.01 * grad**2
    z = z - RATE * grad / (np.sqrt(square / (1 - 0.99 ** (t + 1))) + 1e-8)
    seen.append(z)
  mean = np.mean(seen, axis=0)
  found = optimizers.evaluated(state, after)
  np.testing.assert_allclose(found["w"], mean, atol=1e-6)
  np.testing.assert_allclose(after["w"], 0.9 * mean + 0.1 * z, atol=1e-6)
  # The others keep what they train, the very arrays.
  after, state = stepped(made("adamw"), params, 1)
  assert optimizers.evaluated(state, after) is after


def test_adapters_of_schedule_free_are_averaged_and_the_rest_stays():
  policy = lora.add(trees()["policy"], ADAPTERS, jax.random.key(1))
  trained, frozen = lora.split(policy)
  after, state = stepped(made("schedule_free"), trained, 3)
  found = optimizers.evaluated(state, lora.join(after, frozen))
  assert jax.tree.structure(found) == jax.tree.structure(policy)
  jax.tree.map(np.testing.assert_array_equal, lora.off(found), lora.off(policy))
  name = "layers/q/lora_b"
  assert not np.allclose(found["layers"]["q"]["lora_b"], after[name], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "trunk"),
  [
    ("muon", "policy"), ("muon", "own"), ("adafactor", "own"),
    ("schedule_free", "own"),
  ],
)  # fmt: skip
def test_a_whole_update_moves_adapters_and_a_critic(name, trunk):
  row = learner_runs.row("steppo")
  parts = whole_updates.parts_of(
    row, optimizer=name, final_learning_rate=1.0, critic_trunk=trunk,
    lora=ADAPTERS,
  )  # fmt: skip
  state = whole_updates.start(parts)
  run = jax.jit(functools.partial(update_lib.update, parts))
  after, found = jax.device_get(run(state, None, whole_updates.batch(), None))
  pairs, _ = learner_state.split_metrics(found)
  learner_state.check_finite(pairs, 1)
  moved = lambda a, b: whole_updates.distance(a, b) > 1e-4
  assert moved(lora.split(after.policy)[0], lora.split(state.policy)[0])
  for part in after.critic:
    assert moved(after.critic[part], state.critic[part])
  assert not moved(lora.off(after.policy), lora.off(state.policy))


@pytest.mark.parametrize("name", learner_options.OPTIMIZERS)
def test_states_have_a_place_on_a_mesh_of_models(name):
  model = mesh.make_model_mesh(data=2, fsdp=2, tensor=2)
  params = {
    "embed": {"embedding": jnp.zeros((256, 128))},
    "layers": {"q": {"kernel": jnp.zeros((2, 128, 256))}},
  }
  state = made(name).init(params)
  put = mesh.put(state, mesh.placements(model, state))
  # Whole matrices lie where their parameters do.
  where = mesh.placements(model, params)["layers"]["q"]["kernel"]
  of = [x.sharding for x in jax.tree.leaves(put) if x.shape == (2, 128, 256)]
  assert all(s == where for s in of)
  assert bool(of) == (name != "adafactor")


@pytest.mark.parametrize(
  ("refused", "message"),
  [
    (
      lambda: made("sgd"),
      "learner.optimizer='sgd' is none of adamw, muon, adafactor",
    ),
    (
      lambda: made("schedule_free", final_learning_rate=0.1),
      "set learner.final_learning_rate=1, not 0.1",
    ),
    (
      lambda: learner.make_parts(
        MODEL, "grpo", dataclasses.replace(CONFIG, optimizer="muon"),
        differentiable=True,
      ),
      "learner.optimizer=muon has no derivative",
    ),
    (
      lambda: learner.make_parts(
        spec_lib.Model(lambda *_: None), "grpo",
        dataclasses.replace(CONFIG, optimizer="adafactor"),
      ),
      "learner.optimizer=adafactor knows which arrays",
    ),
  ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(refused, message):
  with pytest.raises(ValueError, match=message):
    refused()
