"""Log-probabilities: only wanted tokens are projected, whatever the chunk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppo_jax.ops import logprobs

B, T, D, V = 3, 13, 4, 7
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, T, D)).astype(np.float32)
TABLE = RNG.normal(size=(V, D)).astype(np.float32)
TOKENS = RNG.integers(0, V, (B, T)).astype(np.int32)
PARENT = np.stack(
  [[RNG.integers(0, max(i, 1)) for i in range(T)] for _ in range(B)]
).astype(np.int32)
# One row without any, one with all, one ragged.
WANTED = np.stack([np.zeros(T, bool), np.ones(T, bool), RNG.random(T) < 0.4])


def slow(hidden):
  """One token after another, float64."""
  logp, entropy = np.zeros((2, B, T))
  for b, t in zip(*np.nonzero(WANTED), strict=True):
    logits = TABLE.astype(np.float64) @ hidden[b, PARENT[b, t]]
    log_all = logits - np.log(np.exp(logits).sum())
    logp[b, t] = log_all[TOKENS[b, t]]
    entropy[b, t] = -(np.exp(log_all) * log_all).sum()
  return logp, entropy


def fast(hidden, wanted=WANTED, *, chunk, skip=True):
  return logprobs.next_token_logprobs(
    hidden, TABLE, TOKENS, PARENT, wanted, chunk=chunk, temperature=1.0,
    softcap=None, skip=skip,
  )  # fmt: skip


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("chunk", [1, 6, 12, 1000])
def test_a_slow_loop_agrees_for_every_chunk(chunk, skip):
  found = jax.jit(functools.partial(fast, chunk=chunk, skip=skip))(HIDDEN)
  for x, y in zip(found, slow(HIDDEN), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 12])
def test_energies_are_of_the_logits_as_they_are(chunk):
  options = {"chunk": chunk, "temperature": 0.5, "softcap": 3.0}
  arrays = HIDDEN, TABLE, TOKENS, PARENT, WANTED
  *both, energy = logprobs.next_token_logprobs_and_energies(*arrays, **options)
  for x, y in zip(
    both, logprobs.next_token_logprobs(*arrays, **options), strict=True
  ):
    np.testing.assert_array_equal(x, y)
  want = np.zeros((B, T))
  for b, t in zip(*np.nonzero(WANTED), strict=True):
    logits = 3 * np.tanh(TABLE.astype(np.float64) @ HIDDEN[b, PARENT[b, t]] / 3)
    want[b, t] = -np.log(np.exp(logits).sum())
  np.testing.assert_allclose(energy, want, atol=1e-5)


def test_only_parents_of_wanted_tokens_have_a_gradient():
  grad = jax.grad(lambda h: sum(x.sum() for x in fast(h, chunk=6)))(HIDDEN)
  read = np.zeros((B, T), bool)
  for b, t in zip(*np.nonzero(WANTED), strict=True):
    read[b, PARENT[b, t]] = True
  np.testing.assert_array_equal(np.asarray(grad)[~read], 0)
  assert np.all(np.abs(np.asarray(grad)[read]).max(-1) > 0)


def test_vmap_and_every_chunk_give_one_gradient():
  loss = lambda h, chunk: sum(x.sum() for x in fast(h, chunk=chunk))
  one = jax.grad(loss)(HIDDEN, 1000)
  np.testing.assert_allclose(jax.grad(loss)(HIDDEN, 4), one, atol=1e-6)
  both = jnp.stack([HIDDEN, 2 * HIDDEN])
  mapped = jax.vmap(jax.grad(functools.partial(loss, chunk=4)))(both)
  np.testing.assert_allclose(mapped[0], one, atol=1e-6)


def test_a_chunk_without_wanted_tokens_is_not_computed():
  # The vocabulary is projected inside a branch only.
  jaxpr = jax.make_jaxpr(functools.partial(fast, chunk=6))(HIDDEN)
  assert "cond" in str(jaxpr)
  nothing = np.zeros((B, T), bool)
  poison = np.full_like(HIDDEN, np.nan)
  for x in fast(poison, nothing, chunk=6):
    np.testing.assert_array_equal(x, 0)


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(AssertionError):
    fast(HIDDEN, WANTED[:, :-1], chunk=6)
