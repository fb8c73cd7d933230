"""Tokens are drawn from softmax(logits / temperature) and nothing else."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from marks import some

from steppo_jax.models import transformer
from steppo_jax.sampler import draw

DRAWS = 40_000


def drawn(logits, temperature=1.0):
  """Draws of one distribution, and their log-probs."""
  logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (8, len(logits)))
  keys = jax.random.split(jax.random.key(3), 8)
  one = lambda i: draw.tokens(
    logits, keys, jnp.full(8, i), jnp.full(8, temperature)
  )
  tokens, logps = jax.jit(jax.vmap(one))(jnp.arange(DRAWS // 8))
  return np.ravel(tokens), np.ravel(logps)


@pytest.mark.parametrize(
  ("temperature", "size"),
  some(
    (0.7, 1), (0.7, 65), (1.0, 64), (1.0, 1000),
    slow=[*itertools.product((0.7, 1.0), (1, 2, 63, 64, 65, 130, 1000))],
  ),
)  # fmt: skip
def test_frequencies_are_the_probabilities(size, temperature):
  logits = np.random.default_rng(size).normal(size=size) * 2
  wanted = np.asarray(jax.nn.softmax(jnp.asarray(logits) / temperature))
  tokens, logps = drawn(logits, temperature)
  counts = np.bincount(tokens, minlength=size)
  assert len(counts) == size
  often = wanted * DRAWS >= 5
  gap = (counts - wanted * DRAWS)[often]
  squares = (gap**2 / (wanted * DRAWS)[often]).sum()
  # Mean n and variance 2 n: far beyond six deviations if the law is another.
  assert squares < often.sum() + 6 * np.sqrt(2 * often.sum()) + 6
  np.testing.assert_allclose(logps, np.log(wanted)[tokens], atol=2e-5)


def test_impossible_tokens_are_never_drawn():
  logits = np.full(200, -np.inf)
  logits[[5, 64, 199]] = [0.0, 1.0, -30.0]
  tokens, logps = drawn(logits)
  assert set(tokens) <= {5, 64, 199}
  assert np.isfinite(logps).all()


def test_a_token_that_is_far_less_likely_than_others_is_still_reached():
  # 1e-6 of the mass, alone in its block and beside others.
  logits = np.full(300, -np.inf)
  logits[[0, 1, 250]] = [0.0, np.log(1e-3), np.log(1e-3)]
  counts = np.bincount(drawn(logits)[0], minlength=300)
  assert 10 < counts[1] < 90
  assert 10 < counts[250] < 90


def test_temperature_zero_takes_the_first_of_the_largest():
  logits = np.zeros(300)
  logits[[70, 71, 299]] = 4.0
  tokens, logps = drawn(logits, 0.0)
  assert (tokens == 70).all()
  np.testing.assert_allclose(logps, jax.nn.log_softmax(logits)[70], atol=1e-5)


@pytest.mark.slow
def test_the_company_does_not_change_a_draw():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(6, 100)), jnp.float32)
  keys = jax.random.split(jax.random.key(1), 6)
  index, heat = jnp.arange(6), jnp.ones(6)
  tokens, _ = draw.tokens(logits, keys, index, heat)
  for i in range(6):
    one = slice(i, i + 1)
    alone, _ = draw.tokens(logits[one], keys[one], index[one], heat[one])
    assert alone[0] == tokens[i]


def test_logits_of_bfloat16_are_refused_and_a_model_of_it_makes_none():
  flat = jnp.zeros((8, 64), jnp.bfloat16)
  keys = jax.random.split(jax.random.key(0), 8)
  with pytest.raises(TypeError, match="must be float32, these are bfloat16"):
    draw.tokens(flat, keys, jnp.zeros(8, int), jnp.ones(8))
  model = dataclasses.replace(worlds.model(), compute="bfloat16")
  params = transformer.abstract_params(model)
  hidden = jax.ShapeDtypeStruct((8, model.width), jnp.bfloat16)
  logits = functools.partial(transformer.logits, model)
  assert jax.eval_shape(logits, params, hidden).dtype == jnp.float32


def test_among_equal_tokens_of_a_large_vocabulary_low_ids_have_no_advantage():
  tokens, _ = drawn(np.zeros(50_000))
  # 20,000 of 40,000 draws with a deviation of 100; of the first 1,000 ids 800
  # with a deviation of 28.
  assert abs((tokens < 25_000).sum() - 20_000) < 500
  assert abs((tokens < 1_000).sum() - 800) < 140


def test_a_nucleus_is_the_likeliest_tokens_of_a_share_of_the_mass():
  # Half of the mass and 0.3 are 0.8: two tokens are the fewest with 0.6.
  chance = jnp.array([[0.15, 0.5, 0.05, 0.3]] * 3)
  logits, ones = jnp.log(chance), jnp.ones(3)
  top_p = jnp.array([0.6, 1.0, 0.5])
  found = draw.nucleus(logits, ones, top_p)
  kept = jnp.isfinite(found)
  assert kept.tolist() == [
    [False, True, False, True], [True] * 4, [False, True, False, False],
  ]  # fmt: skip
  assert (found[1] == logits[1]).all()
  keys = jax.vmap(jax.random.key)(jnp.arange(3))
  drawn = [draw.tokens(found, keys, jnp.full(3, i), ones) for i in range(40)]
  first = {int(token[0]): float(logp[0]) for token, logp in drawn}
  assert sorted(first) == [1, 3]
  assert first[1] == pytest.approx(np.log(0.5 / 0.8), abs=1e-6)
  assert first[3] == pytest.approx(np.log(0.3 / 0.8), abs=1e-6)
  # At temperature 4 they are 0.31, 0.28, 0.23 and 0.18: it takes three.
  assert jnp.isfinite(draw.nucleus(logits, ones * 4, top_p)[0]).sum() == 3
