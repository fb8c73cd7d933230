"""Tiles and devices give the log-probabilities that one product gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu_tools

from steppo_jax.models import mesh as mesh_lib
from steppo_jax.ops import logprobs, tiled_logprobs

hlo = tpu_tools.load("hlo")
B, T, D = 8, 6, 16
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, T, D)).astype(np.float32)
PARENT = np.stack(
  [[RNG.integers(0, max(i, 1)) for i in range(T)] for _ in range(B)]
).astype(np.int32)
# Rows without any, with all, and ragged.
WANTED = RNG.random((B, T)) < 0.5
WANTED[0], WANTED[1] = False, True
WEIGHTS = RNG.normal(size=(2, B, T)).astype(np.float32)
SPLITS = {
  "one device": None,
  "rows": ((8, 1, 1), ()),
  "rows and vocabulary": ((2, 4, 1), ("fsdp",)),
  "rows, table gathered": ((2, 4, 1), ()),
  "vocabulary twice": ((1, 4, 2), ("tensor", "fsdp")),
  "vocabulary alone": ((1, 1, 8), ("tensor",)),
}


def table(size):
  made = np.random.default_rng(size).normal(size=(size, D))
  return made.astype(np.float32)


def arrays(size):
  tokens = np.random.default_rng(1).integers(0, size, (B, T))
  return tokens.astype(np.int32), PARENT, WANTED


def split_of(name):
  if SPLITS[name] is None:
    return None
  (data, fsdp, tensor), vocabulary = SPLITS[name]
  made = mesh_lib.make_model_mesh(data=data, fsdp=fsdp, tensor=tensor)
  return tiled_logprobs.Split(made, ("data", "fsdp"), vocabulary)


def loss(function, hidden, table, *given, weights=WEIGHTS, **options):
  """Log-probs and entropies, each with a gradient of its own."""
  logp, entropy = function(hidden, table, *given, temperature=0.7, **options)
  return (weights[0] * logp).sum() + (weights[1] * entropy).sum(), (
    logp,
    entropy,
  )


@pytest.mark.parametrize(
  ("name", "size"),
  [*((name, 41) for name in SPLITS), ("vocabulary twice", 7)],
)
def test_tiles_and_devices_change_no_number(name, size, monkeypatch):
  # Tiles of 4 in a vocabulary that neither they nor the devices divide, of
  # which some devices have none; tokens in several chunks.
  monkeypatch.setattr(tiled_logprobs, "TILE", 4)
  made = table(size), *arrays(size)
  run = lambda function, **options: jax.jit(
    jax.value_and_grad(
      functools.partial(loss, function, softcap=5.0, **options),
      (0, 1),
      has_aux=True,
    )
  )(HIDDEN, *made)
  (_, want), grads = run(logprobs.next_token_logprobs, chunk=48)
  (_, found), found_grads = run(
    tiled_logprobs.tiled_logprobs, chunk=16, split=split_of(name)
  )
  for x, y in zip((*found, *found_grads), (*want, *grads), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "temperature"),
  [*((name, 0.7) for name in SPLITS), ("vocabulary twice", 1.0)],
)
def test_energies_are_those_of_one_product(name, temperature, monkeypatch):
  monkeypatch.setattr(tiled_logprobs, "TILE", 4)
  given = HIDDEN, 3 * table(41), *arrays(41)
  options = {"temperature": temperature, "softcap": 5.0}
  run = lambda function, **more: jax.jit(
    functools.partial(function, **options, **more)
  )(*given)
  want = run(logprobs.next_token_logprobs_and_energies, chunk=48)
  found = run(
    tiled_logprobs.tiled_logprobs_and_energies, chunk=16, split=split_of(name)
  )
  assert len(found) == 3
  for x, y in zip(found, want, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(x[~WANTED], 0)
  # Logits as they are: no temperature divides them, and they are none of 0.
  logits = 5.0 * np.tanh(HIDDEN @ (3 * table(41)).T / 5.0)
  energy = -np.log(np.exp(logits.astype(np.float64)).sum(-1))
  energy = np.take_along_axis(energy, PARENT, axis=1)
  np.testing.assert_allclose(found[2][WANTED], energy[WANTED], rtol=1e-5)


def compiled(function, made, *, trained, split, size=4096, chunk=16):
  """The gradient of log-probs alone, for arrays that lie as a learner's do."""
  rows = mesh_lib.by_row(made, 0)
  at = mesh_lib.by_path(made)("embed/embedding", (size, D))
  shaped = lambda shape, kind, where: jax.ShapeDtypeStruct(
    shape, kind, sharding=where
  )
  options = {"split": split} if split else {}
  logp = lambda hidden, table, *given: function(
    hidden, table, *given, chunk=chunk, temperature=1.0, softcap=None, **options
  )[0].sum()
  run = jax.jit(jax.grad(logp, (0, 1) if trained else 0))
  return run.lower(
    shaped((B, T, D), jnp.float32, rows),
    shaped((size, D), jnp.float32, at),
    *(shaped((B, T), kind, rows) for kind in (jnp.int32, jnp.int32, jnp.bool_)),
  ).compile()


def in_loops(program, size):
  """Collectives within loops that move as much as a part of the table."""
  found = hlo.Program(program.as_text()).collectives()
  assert found
  return [x for x in found if x.depth and x.bytes >= 4 * size * D / 8]


@pytest.mark.parametrize("trained", [False, True])
def test_no_loop_over_tokens_moves_the_table(trained):
  made = mesh_lib.make_model_mesh(data=1, fsdp=8, tensor=1)
  split = tiled_logprobs.Split(made, ("data", "fsdp"), ("fsdp",))
  program = compiled(
    tiled_logprobs.tiled_logprobs, made, trained=trained, split=split
  )
  assert not in_loops(program, 4096)
  # The compiler's own split moves it for every chunk.
  plain = compiled(
    logprobs.next_token_logprobs, made, trained=trained, split=None
  )
  assert "all-gather" in {x.kind for x in in_loops(plain, 4096)}


def test_a_table_that_is_not_trained_costs_no_gradient():
  one = mesh_lib.make_mesh(1)
  function = functools.partial(tiled_logprobs.tiled_logprobs, split=None)
  flops = [
    compiled(function, one, trained=trained, split=None).cost_analysis()[
      "flops"
    ]
    for trained in (False, True)
  ]
  # Logits forward and again, hidden states' gradient; and the table's.
  assert 1.2 < flops[1] / flops[0] < 1.5


def test_no_array_of_tokens_by_vocabulary_is_held():
  one = mesh_lib.make_mesh(1)
  size = 65_536
  kept = [
    compiled(function, one, trained=True, split=split, size=size, chunk=48)
    .memory_analysis()
    .temp_size_in_bytes
    for function, split in (
      (logprobs.next_token_logprobs, None),
      (
        functools.partial(tiled_logprobs.tiled_logprobs, split=None),
        None,
      ),
    )
  ]
  logits = 4 * B * T * size
  assert kept[1] < logits < kept[0]


def test_where_nothing_is_wanted_nothing_is_computed():
  poison = np.full_like(HIDDEN, np.nan)
  tokens, parent, wanted = arrays(41)
  made = table(41)
  run = lambda hidden: loss(
    tiled_logprobs.tiled_logprobs, hidden, made, tokens, parent,
    np.zeros_like(wanted), chunk=16, softcap=None, split=None,
  )  # fmt: skip
  gradient, found = jax.grad(run, has_aux=True)(poison)
  for x in (gradient, *found):
    np.testing.assert_array_equal(x, 0)


def test_what_is_not_finite_shows():
  hidden = HIDDEN.copy()
  hidden[1, 0, 0] = np.inf
  _, (logp, entropy) = loss(
    tiled_logprobs.tiled_logprobs, hidden, table(41), *arrays(41), chunk=16,
    softcap=None, split=None,
  )  # fmt: skip
  assert not np.isfinite(logp).all()
  assert not np.isfinite(entropy).all()
