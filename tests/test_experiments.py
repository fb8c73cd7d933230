"""The small experiments of docs/differentiable.md, with smaller settings."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments" / "chain"


@pytest.mark.slow
def test_the_chain_is_solved_as_a_long_walk_adds_up(load):
  chain_lib = load("chain")
  chain = chain_lib.Chain(size=3, slip=0.25, discount=0.5)
  # Always right, from state 2: it stays with .75, pays 1 a step there, and
  # slips to state 1, which pays .5; state 0 pays nothing.
  policy = jnp.tile(jnp.array([0.0, 1.0]), (3, 1))
  value, visits = np.zeros(3), np.eye(3)
  step = np.array([[0, 0.75, 0], [0.25, 0, 0.75], [0, 0.25, 0.75]])
  for age in range(60):
    value += 0.5**age * visits @ np.array([0, 0.5, 1])
    visits = visits @ step
  found = chain_lib.solve(chain, policy)
  np.testing.assert_allclose(found, value, rtol=1e-5)


def test_sampled_steps_hold_what_the_estimators_expect(load):
  chain_lib = load("chain")
  chain = chain_lib.Chain(size=4)
  steps = chain_lib.sample(
    chain, jnp.full((4, 2), 0.5), jax.random.key(0), episodes=50, limit=5
  )
  steps = jax.tree.map(np.asarray, steps)
  assert steps.last[0]
  assert not steps.live[0]
  live = steps.live[1:].reshape(50, 5)
  last = steps.last[1:].reshape(50, 5)
  cut = steps.truncated[1:].reshape(50, 5)
  # An episode is live up to its one last step; what follows is unused.
  assert live[:, 0].all()
  np.testing.assert_array_equal((live & last).sum(1), 1)
  assert last[~live].all()
  np.testing.assert_array_equal(cut, live & last & cut)
  assert cut[:, -1].any()
  assert not cut[:, :-1].any()
  # Moving left of state 0 is the only other end.
  ended = steps.last & steps.live & ~steps.truncated
  assert ended.any()
  np.testing.assert_array_equal(steps.state[ended], 0)


@pytest.mark.slow
def test_the_zero_bootstrap_converges_to_the_value_of_the_steps_left(load):
  truncation = load("truncation")
  exact, limit, tables = truncation.run(
    seeds=(0, 1), iterations=150, episodes=256
  )
  ours, zero = (tables[name][:, -1] for name in ("value", "zero"))
  np.testing.assert_allclose(ours, np.tile(exact, (2, 1)), rtol=0.05)
  np.testing.assert_allclose(zero, np.tile(limit, (2, 1)), rtol=0.05)
  assert (zero < 0.3 * exact).all()
  # Its order is wrong as well: the best state is ranked below another.
  assert exact.argmax() == 7
  assert (zero.argmax(1) != 7).all()


@pytest.mark.slow
def test_the_gradient_in_lambda_passes_through_a_whole_update(load):
  tuning = load("differentiable_lambda")
  keys = jax.random.split(jax.random.key(3), 32)
  run = jax.jit(lambda x: tuning.mean_achieved(x, keys, math.inf))
  slope = jax.jit(jax.grad(run))
  for at in (0.3, 0.9):
    expected = (run(at + 0.01) - run(at - 0.01)) / 0.02
    np.testing.assert_allclose(slope(at), expected, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_lambda_tuned_by_gradient_is_the_best_of_a_sweep(load):
  tuning = load("differentiable_lambda")
  grid = np.linspace(0.0, 1.0, 11)
  paths, found = tuning.run(
    math.inf,
    seeds=(0, 1),
    starts=(0.2, 0.97),
    num_steps=60,
    batches=24,
    grid=grid,
    sweep_batches=256,
  )
  mean = found.mean(1)
  best = grid[mean.argmax()]
  assert 0.5 < best < 1.0
  np.testing.assert_allclose(paths[:, -1], best, atol=0.12)
  assert (np.interp(paths[:, -1], grid, mean) > max(mean[0], mean[-1])).all()
