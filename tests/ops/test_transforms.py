"""Every public op under every transform gives what it gives eagerly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from marks import some
from transform_cases import CASES, IDS, LAST, X_K, X_T, close

from steppo_jax.ops import returns


def _flat(tree):
  return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


# Loops over tokens take seconds to trace and lower.
QUICK = [x for x in CASES if x not in ("token_gae", "turn_and_token_gae")]


@pytest.mark.parametrize("name", some(*QUICK, slow=CASES))
def test_every_transform_agrees_with_eager(name):
  function, x = CASES[name]
  run = lambda x: _flat(function(x))
  eager = run(x)
  close(jax.jit(run)(x), eager)
  # Eight different inputs at once: over vmap, pmap and a mesh of 8 devices.
  scale = np.linspace(1.0, 2.0, 8, dtype=np.float32)
  many = scale.reshape(8, *[1] * x.ndim) * x
  mapped = jax.jit(jax.vmap(run))(many)
  close(mapped[0], eager)
  close(mapped[7], run(many[7]))
  close(jax.pmap(run)(many), mapped)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  sharded = jax.shard_map(
    lambda x: run(x[0])[None],
    mesh=mesh,
    in_specs=P("data"),
    out_specs=P("data"),
  )
  close(jax.jit(sharded)(many), mapped)


@pytest.mark.parametrize("name", some(*QUICK, slow=CASES))
def test_forward_and_reverse_gradients_agree(name):
  function, x = CASES[name]
  run = lambda x: _flat(function(x))
  forward = jax.jit(jax.jacfwd(run))(x)
  weight = np.random.default_rng(1).normal(size=forward.shape[0])
  weight = weight.astype(np.float32)
  reverse = jax.jit(jax.grad(lambda x: (weight * run(x)).sum()))(x)
  assert np.isfinite(reverse).all()
  expected = np.tensordot(weight, forward, axes=1)
  np.testing.assert_allclose(reverse, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", some(*QUICK, slow=CASES))
def test_second_derivatives_are_finite_and_agree(name):
  function, x = CASES[name]
  curved = lambda x: jnp.square(_flat(function(x))).sum()
  way = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)

  def both(x):
    forward = jax.jvp(jax.grad(curved), (x,), (way,))[1]
    reverse = jax.grad(lambda x: jnp.vdot(jax.grad(curved)(x), way))(x)
    return forward, reverse

  # Where nothing varies, too: there lie the roots and quotients.
  for at in (x, np.zeros_like(x)):
    forward, reverse = jax.jit(both)(at)
    assert np.isfinite(forward).all()
    np.testing.assert_allclose(forward, reverse, rtol=2e-4, atol=2e-4)


@functools.cache
def _curvature_of_credit():
  def curved(at):
    gain, _ = returns.token_gae(
      X_K, X_T, IDS, LAST, X_K, discount=at[0], lambda_=at[1]
    )
    return jnp.square(gain).sum()

  slope = jax.grad(curved)
  return jax.jit(lambda at: (jax.jacfwd(slope)(at), jax.jacrev(slope)(at)))


@pytest.mark.slow
@pytest.mark.parametrize("at", [(0.0, 0.8), (0.9, 0.0), (0.0, 0.0)])
def test_second_derivatives_of_credit_where_nothing_is_passed_on(at):
  forward, reverse = _curvature_of_credit()(np.float32(at))
  assert np.isfinite(forward).all()
  np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-4)
