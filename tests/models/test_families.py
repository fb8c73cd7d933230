"""Every family computes what transformers recorded, in every kind of row."""

import dataclasses
import functools
import itertools

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import some

from steppo_jax import types
from steppo_jax.models import attend, presets, transformer
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import hf_config
from steppo_jax.ops import attention, logprobs
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options

LAYOUTS = {
  "right": lambda ids: families.padded(ids, left=False),
  "left": lambda ids: families.padded(ids, left=True),
  "packed": families.packed,
  "branched": families.branched,
}


# The last two have all that the first five have not.
FIRST, LAST = families.NAMES[:5], families.NAMES[5:]
FAST = (("right", 64), ("left", 64), ("packed", 64), ("branched", 8))


@pytest.mark.parametrize(
  ("name", "layout", "block"),
  some(
    *((name, *row) for name in FIRST for row in FAST),
    *((name, *row) for name in LAST for row in FAST[3:]),
    slow=[
      (name, layout, block)
      for name in families.NAMES for layout in LAYOUTS for block in (8, 64)
    ],
  ),
)  # fmt: skip
def test_logits_are_those_of_transformers(name, layout, block):
  model, params = families.checkpoint(name)
  ids, right, left = families.recorded(name)
  expected = left if layout == "left" else right
  rows, slots = LAYOUTS[layout](ids)
  got = families.jitted(model, params, *rows, block=block)
  assert got.dtype == jnp.float32
  for (row, at), want in zip(slots, expected, strict=True):
    assert np.ptp(want) > 1  # far from flat
    np.testing.assert_allclose(got[row, at], want, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "remat"),
  some(
    ("gemma3", "dots"),
    slow=[("qwen2", "dots"), ("gemma3", "full")],
  ),
)  # fmt: skip
def test_computing_again_gives_the_same_gradient(name, remat):
  model, params = families.checkpoint(name)
  rows, _ = families.packed(families.recorded(name)[0])

  def gradient(model):
    loss = lambda p: jnp.square(families.logits(model, p, *rows, block=8)).sum()
    return jax.jit(jax.grad(loss))(params)

  again = gradient(dataclasses.replace(model, remat=remat))
  for x, y in zip(
    jax.tree.leaves(gradient(model)), jax.tree.leaves(again), strict=True
  ):
    np.testing.assert_allclose(x, y, atol=1e-5 * float(jnp.abs(x).max()))


@pytest.mark.parametrize("name", some(*FIRST, slow=LAST))
def test_bfloat16_rounds_and_keeps_float32_logits(name):
  model, params = families.checkpoint(name)
  ids, expected, _ = families.recorded(name)
  half = dataclasses.replace(model, compute="bfloat16")
  rows, slots = families.packed(ids)
  got = families.jitted(half, params, *rows)
  assert got.dtype == jnp.float32
  for (row, at), want in zip(slots, expected, strict=True):
    gap = np.abs(got[row, at] - want).mean()
    assert 1e-4 < gap < 0.1 * want.std()


@pytest.mark.parametrize("name", some("qwen2", "gemma3", slow=families.NAMES))
def test_parameters_of_half_the_bytes_run_in_float32(name):
  model, params = families.checkpoint(name)
  small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  rows, _ = families.packed(families.recorded(name)[0])
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), small)
  np.testing.assert_allclose(
    families.jitted(model, small, *rows),
    families.jitted(model, wide, *rows),
    atol=2e-5,
  )


def slow_window(q, k, v, end, positions, window):
  mask = attention.interval_mask(end)
  mask &= positions[:, :, None] - positions[:, None, :] < window
  k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
  score = jnp.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
  weight = jax.nn.softmax(jnp.where(mask[:, None], score, -1e30), -1)
  return jnp.einsum("bhij,bjhd->bihd", weight, v)


BLOCKED = {
  block: functools.partial(attention.window_attention, block=block)
  for block in (64, 8)
}


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(run, q, k, v, end, positions, window, dout):
  out, back = jax.vjp(
    lambda q, k, v: run(q, k, v, end, positions, window), q, k, v
  )
  return out, *back(dout)


@pytest.mark.parametrize("block", BLOCKED)
@pytest.mark.parametrize("window", [1, 7, 30, 500])
def test_windows_count_positions_and_have_the_right_gradient(window, block):
  _, positions, end = families.branched(families.recorded("gemma3")[0])[0]
  end, positions = jnp.asarray(end), jnp.asarray(positions)
  t = end.shape[1]
  keys = jax.random.split(jax.random.key(0), 4)
  draw = lambda key, heads: jax.random.normal(key, (1, t, heads, 8))
  q, k, v = draw(keys[0], 4), draw(keys[1], 2), draw(keys[2], 2)
  dout = draw(keys[3], 4)

  got, want = (
    with_gradients(run, q, k, v, end, positions, np.int32(window), dout)
    for run in (BLOCKED[block], slow_window)
  )
  for x, y in zip(got, want, strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


def test_blocks_outside_a_window_are_not_computed():
  t, block, window = 96, 8, 8
  end, positions = jnp.full((1, t), t), jnp.arange(t)[None]
  pairs = lambda near: int(attention._pairs(end, near, block)[2])
  assert pairs(None) == 12 * 13 // 2
  # Its own block and the one before.
  assert pairs((positions, jnp.int32(window))) == 12 + 11


@functools.cache
def engine(name):
  """Few shapes, as every one is compiled."""
  model, _ = families.checkpoint(name)
  return engine_lib.SlotEngine(
    model,
    options.SamplerConfig(num_slots=2, prefill_lengths=(32,)),
    context=96, max_new_tokens=12, end_of_turn_id=1, seed=0,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("name", "temperature"))
def relearned(name, row, *, temperature):
  """[B, T] log-probs of padded sequences by the learner's functions."""
  model, params = families.checkpoint(name)
  positions = jnp.broadcast_to(jnp.arange(row.shape[1]), row.shape)
  run = attend.over_rows(
    jnp.full(row.shape, row.shape[1]), positions, block=16,
    implementation="xla", mesh=None,
  )  # fmt: skip
  hidden = transformer.apply(model, params, row, positions, run)
  return logprobs.next_token_logprobs(
    hidden, transformer.unembedding(params), row,
    jnp.maximum(positions - 1, 0), positions > 0, chunk=256,
    temperature=temperature, softcap=model.softcap,
  )[0]  # fmt: skip


@pytest.mark.parametrize(
  ("name", "reuse", "temperature"),
  some(
    ("gemma3", True, 1.0),
    ("gemma3", False, 1.0),
    slow=[*itertools.product(families.NAMES, (True, False), (0.7, 1.0))],
  ),
)
def test_the_sampler_reports_what_the_learner_computes(
  name, reuse, temperature
):
  made, params = engine(name), families.checkpoint(name)[1]
  made.set_params(params, 0)
  before = made.counters.prefill_tokens
  rng = np.random.default_rng(0)
  prompts = [rng.integers(3, 96, n) for n in (5, 30)]
  spans = [[] for _ in prompts]
  for turn in range(3):
    answers = made.generate(
      [
        types.Request(str(i), p.astype(np.int32), (i, turn), 12, temperature)
        for i, p in enumerate(prompts)
      ]
    )
    for i, answer in enumerate(answers):
      spans[i].append((len(prompts[i]), answer.behaviour_logp))
      prompts[i] = np.concatenate(
        [prompts[i], answer.response_ids, rng.integers(3, 96, 4)]
      )
    if not reuse:
      made.set_params(params, turn + 1)
  for session in "01":
    made.release(session)
  read = made.counters.prefill_tokens - before
  assert (read < sum(len(p) for p in prompts)) == reuse
  padded = np.stack([np.pad(p, (0, 96 - len(p))) for p in prompts])
  expected = relearned(name, padded.astype(np.int32), temperature=temperature)
  for row, turns in zip(np.asarray(expected), spans, strict=True):
    for start, got in turns:
      want = row[start : start + len(got)]
      np.testing.assert_allclose(got, want, atol=1e-4)


PUBLISHED = {
  "smollm2_135m": 134_515_008,
  "smollm3_3b": 3_075_098_624,
  "llama3_2_1b": 1_235_814_400,
  "qwen2_5_0_5b": 494_032_768,
  "qwen3_0_6b": 596_049_920,
  "qwen3_1_7b": 1_720_574_976,
  "qwen3_4b": 4_022_468_096,
  "gemma3_270m": 268_098_176,
  "gemma3_1b": 999_885_952,
}


@pytest.mark.parametrize("name", presets.VOCABULARIES)
def test_presets_have_the_published_number_of_parameters(name):
  model = presets.get(name)
  like = transformer.abstract_params(model)
  assert transformer.num_params(like) == PUBLISHED[name]
  assert hf_config.from_config(hf_config.to_config(model)) == model
  # As the facts of a weights file keep it.
  assert ModelConfig(**dataclasses.asdict(model)) == model


def test_a_preset_without_a_vocabulary_asks_for_one():
  with pytest.raises(ValueError, match="micro has no vocabulary"):
    presets.get("micro")
  with pytest.raises(ValueError, match="unknown model 'qwen9'"):
    presets.get("qwen9", 10)


@pytest.mark.slow
@pytest.mark.parametrize("rows", some(2, slow=(1, 5)))
def test_turned_matrices_compute_what_stacked_ones_do(rows):
  model, params = families.checkpoint("qwen2")  # has biases
  tokens = jnp.arange(3, 3 + rows, dtype=jnp.int32)[:, None]
  at = jnp.zeros_like(tokens)
  attend_to_self = lambda q, k, v: v.repeat(q.shape[2] // v.shape[2], axis=2)
  want = transformer.apply(model, params, tokens, at, attend_to_self)
  layers = transformer.by_layer(params)
  assert layers["layers"][0]["up"][transformer.TURNED].shape == (
    model.mlp_width, model.width,
  )  # fmt: skip
  found = transformer.apply_layerwise(
    model, layers, tokens, at, [attend_to_self] * model.num_layers
  )
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
