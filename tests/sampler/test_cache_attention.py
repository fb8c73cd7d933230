"""The kernel over pages gives what the loop over blocks gives."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import plays
import pytest
import worlds
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel

from steppo_jax.models import transformer
from steppo_jax.models.config import FULL
from steppo_jax.sampler import cache as cache_lib
from steppo_jax.sampler import cache_attention

SLOTS, CONTEXT, BEHIND = 5, 150, 10**6
# (slots of the rows, first positions, numbers of tokens, tokens of a row)
ROWS = {
  "one token of every slot": (None, (0, 149, 63, 64, 7), (1,) * 5, 1),
  "one token of some": ((3, 0, 5), (100, 2, 0), (1, 1, 0), 1),
  "runs": ((4, 1, 5, 2), (0, 61, 0, 141), (9, 6, 0, 9), 9),
  "a run up to the end": ((2,), (141,), (9,), 9),
}


def model(**changes):
  sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 128} | changes
  return dataclasses.replace(worlds.model(), **sizes)


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def filled(config, paged):
  """A layer that holds the same keys and values in either form."""
  cache = cache_lib.empty(config, SLOTS, CONTEXT, paged=paged)
  shape = SLOTS, CONTEXT, config.num_kv_heads, config.head_dim
  k, v = (normal(n, *shape) for n in range(2))
  every = jnp.broadcast_to(jnp.arange(CONTEXT), shape[:2])
  return cache_lib.store(cache.layers[0], k, v, jnp.arange(SLOTS), every)


class Held:
  """Keys and values that a kernel has fetched."""

  def __init__(self, ref):
    self._ref = ref

  def reshape(self, *shape):
    return self._ref[...].reshape(*shape)


def store(ref, value, *, mask):
  """Writes where the mask says so, without a masked write."""
  ref[...] = jnp.where(mask, value, ref[...])


@pytest.fixture
def interpreted(monkeypatch):
  """JAX's kernel on CPU, in float32.

  JAX's interpreter knows no reference in another shape, which the kernel makes
  of what it has fetched, and no masked write into a part of a reference: an
  array and a whole write take their places.
  """
  fetched = kernel.MultiPageAsyncCopyDescriptor
  wait = fetched.wait
  monkeypatch.setattr(fetched, "wait", lambda self: Held(wait(self)))
  monkeypatch.setattr(pltpu, "store", store)
  with pltpu.force_tpu_interpret_mode():
    yield


# The quick one has a row that ends with the cache, padding and an unused row.
QUICK = "runs", FULL
CASES = [
  pytest.param(*case, marks=() if case == QUICK else pytest.mark.slow)
  for case in itertools.product(ROWS, (FULL, 20))
]


@pytest.mark.parametrize(("rows", "window"), CASES)
def test_the_kernel_reads_what_the_loop_reads(rows, window, interpreted):
  config = model()
  slots, first, count, length = ROWS[rows]
  q = normal(2, len(first), length, 4, 128)
  offset = np.arange(length)
  positions = np.where(
    offset < np.array(count)[:, None], np.array(first)[:, None] + offset, BEHIND
  )
  slots = None if slots is None else jnp.array(slots)
  attend = jax.jit(functools.partial(cache_attention.attend, window=window))
  found, want = (
    np.asarray(attend(q, filled(config, paged), slots, positions))
    for paged in (True, False)
  )
  read = positions < CONTEXT
  assert read.any()
  np.testing.assert_allclose(found[read], want[read], atol=1e-5)


@pytest.mark.slow
def test_the_kernel_changes_no_answer(monkeypatch, interpreted):
  """Groups that share prompts, of many lengths, over three turns."""
  config = dataclasses.replace(model(), num_layers=1, windows=(70,))
  params = jax.jit(lambda key: transformer.init(config, key))(jax.random.key(0))
  found = []
  for paged in (False, True):
    monkeypatch.setattr(cache_attention, "is_paged", lambda *_, p=paged: p)
    found.append(
      plays.play(plays.make(config, params, context=150, lengths=(16,)))
    )
  for x, y in zip(*found, strict=True):
    np.testing.assert_array_equal(x.response_ids, y.response_ids)
    np.testing.assert_allclose(x.behaviour_logp, y.behaviour_logp, atol=1e-5)


@pytest.mark.parametrize(
  ("changes", "platform", "message"),
  [
    ({}, "cpu", "its kernel is for TPUs"),
    ({"head_dim": 64}, "tpu", "a multiple of 128 numbers, .* head_dim=64"),
    ({"num_kv_heads": 3, "num_heads": 6}, "tpu", "num_kv_heads=3 .* fill 6"),
  ],
)
def test_what_no_kernel_takes_is_told(changes, platform, message, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  with pytest.raises(
    ValueError, match=f"sampler.attention=pallas: .*{message}"
  ):
    cache_attention.is_paged("pallas", model(**changes))
  assert not cache_attention.is_paged("auto", model(**changes))


def test_a_tpu_has_pages_unless_it_is_told_otherwise(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert cache_attention.is_paged("auto", model())
  assert not cache_attention.is_paged("xla", model())
  with pytest.raises(ValueError, match="none of auto, xla, pallas"):
    cache_attention.is_paged("page", model())
