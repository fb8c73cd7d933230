"""Devices that share a model compute what one device computes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from marks import some

from steppo_jax.models import transformer
from steppo_jax.sampler import draw, options, split
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.training import config

DEVICES = 4
PLAIN = transformer.ModelConfig(
  vocab_size=100, width=16, num_layers=2, num_heads=8, num_kv_heads=4,
  head_dim=4, mlp_width=24, num_ids=97,
)  # fmt: skip
FAMILIES = {
  "biases": dict(qkv_bias=True, o_bias=True, mlp_bias=True),
  "norms of heads": dict(qk_norm=True, query_scale=0.3),
  "norms over heads": dict(
    qk_norm=True, qk_norm_joint=True, pre_norms=False, sandwich_norms=True
  ),
  "windows": dict(
    windows=(3, 0), local_rope_theta=100.0, norm_offset=1.0, embed_scale=4.0
  ),
  "a table of its own": dict(tied=False, softcap=2.0, unrotated=(True, False)),
}


def mesh(parts=DEVICES):
  devices = np.array(jax.devices()[:parts])
  return jax.sharding.Mesh(devices, (split.AXIS,))


def sees_before(q, k, v, window=None):
  """Causal attention, one head at a time."""
  k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
  behind = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
  seen = (behind >= 0) & (behind < (window or 2**30))
  score = jnp.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
  weight = jax.nn.softmax(jnp.where(seen, score, -1e30), axis=-1)
  return jnp.einsum("bhij,bjhd->bihd", weight, v)


def all_logits(model, params, tokens, parts):
  """[B, T, V] by devices that share the model, -inf behind the tokens."""
  axis = split.axis(parts)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

  def run(params):
    hidden = transformer.apply_layerwise(
      split.part(model, parts), params, tokens, positions,
      [sees_before] * model.num_layers, axis,
    )  # fmt: skip
    rows = hidden.reshape(-1, model.width)
    return split.logits(model, params, rows, axis)

  if axis is not None:
    run = jax.shard_map(
      run, mesh=mesh(parts), in_specs=(split.specs(model, parts),),
      out_specs=PartitionSpec(None, axis), check_vma=False,
    )  # fmt: skip
  return jax.jit(run)(params)


@pytest.mark.parametrize("kv", some(4, slow=[1, 2, 8]))
@pytest.mark.parametrize("family", some(*list(FAMILIES)[3:], slow=FAMILIES))
def test_every_family_can_be_shared(family, kv):
  model = dataclasses.replace(PLAIN, num_kv_heads=kv, **FAMILIES[family])
  made = transformer.init(model, jax.random.key(0))
  # Norms and biases that are not those of the start.
  made = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), made
  )
  params = transformer.by_layer(made)
  tokens = np.random.default_rng(0).integers(0, 97, (2, 7))
  want = all_logits(model, params, tokens, 1)
  fit = split.fit(model, params, DEVICES)
  found = all_logits(model, fit, tokens, DEVICES)
  np.testing.assert_allclose(found[:, :97], want, rtol=2e-4, atol=2e-4)
  # Whole blocks of rows, of which none behind the tokens is ever drawn.
  assert found.shape[1] == DEVICES * draw.BLOCK
  assert (np.asarray(found[:, 97:]) == -np.inf).all()


@functools.cache
def shared_draw():
  shares = PartitionSpec(None, split.AXIS)
  return jax.jit(
    jax.shard_map(
      functools.partial(draw.tokens, axis=split.AXIS), mesh=mesh(),
      in_specs=(shares, *[PartitionSpec()] * 3),
      out_specs=PartitionSpec(), check_vma=False,
    )
  )  # fmt: skip


@given(
  st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.3, 1.0]),
  st.sampled_from([1, 63, 64, 65, 200, 256]), st.booleans(),
)  # fmt: skip
def test_a_token_is_the_same_whoever_holds_its_row(seed, heat, tokens, ties):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(3, DEVICES * draw.BLOCK)).astype(np.float32) * 3
  if ties:
    logits = np.round(logits)
  logits[:, tokens:] = -np.inf
  given_ = (
    jax.random.split(jax.random.key(seed), 3),
    np.arange(3, dtype=np.int32),
    np.full(3, heat, np.float32),
  )
  want = jax.jit(draw.tokens)(logits, *given_)
  found = shared_draw()(logits, *given_)
  # To the bit: what is added up over devices is one number and zeros.
  for x, y in zip(found, want, strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  ("sizes", "parts", "message"),
  [
    (dict(num_heads=6, num_kv_heads=3), 4, "num_heads=6"),
    (dict(mlp_width=30), 4, "mlp_width=30"),
    (dict(num_heads=12, num_kv_heads=3), 4, "num_kv_heads=3"),
    (dict(), 16, "num_heads=8"),
  ],
)
def test_a_model_that_cannot_be_shared_is_refused(sizes, parts, message):
  model = dataclasses.replace(PLAIN, **sizes)
  with pytest.raises(ValueError, match=f"sampler.tensor={parts} .*{message}"):
    split.check(model, parts)


def test_what_does_not_go_together_is_refused():
  make = lambda devices: engine_lib.SlotEngine(
    worlds.model(), options.SamplerConfig(num_slots=2, tensor=2), context=32,
    max_new_tokens=8, end_of_turn_id=0, seed=0, devices=devices,
  )  # fmt: skip
  with pytest.raises(ValueError, match="tensor=2, but there are 1 devices"):
    make(jax.devices()[:1])
  with pytest.raises(ValueError, match="tensor=0 must be at least 1"):
    options.SamplerConfig(tensor=0)
  run = config.RunConfig("w", sampler=options.SamplerConfig(tensor=2))
  run.check_training()
  for name, value in (
    ("staleness", 1), ("source", "agents"), ("source", "service"),
    ("engine", "http"),
  ):  # fmt: skip
    other = dataclasses.replace(run.rollout, **{name: value})
    with pytest.raises(ValueError, match=rf"tensor=2 goes.*{name}={value}"):
      dataclasses.replace(run, rollout=other).check_training()
