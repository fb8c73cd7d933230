"""GGUF files, written here by the package gguf: names, order, types, faults."""

import dataclasses
import math

import families
import gguf_writing
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppo_jax import trees
from steppo_jax.models import rotary
from steppo_jax.models.config import RopeScaling
from steppo_jax.models.formats import gguf as formats_gguf
from steppo_jax.models.formats import hf_config

gguf = pytest.importorskip("gguf", reason="pip install 'steppo_jax[gguf]'")
Q = gguf.GGMLQuantizationType


# By family: the architecture, and keys beside the sizes.
KEYS = {
  "gemma3": {
    "attention.sliding_window": 9, "final_logit_softcapping": 6.0,
    "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
  },
  "olmo3": {
    "attention.sliding_window": 9, "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16,
  },
}  # fmt: skip
ARCHITECTURES = {"olmo3": "olmo2", "mistral": "llama"}


def checkpoint(name):
  """A family's sizes and parameters as a GGUF file can say them."""
  model, params = families.checkpoint(name)
  if name == "llama3":
    model = dataclasses.replace(model, rope_scaling=None)
  if name == "gemma3":
    model = dataclasses.replace(model, query_scale=model.head_dim**-0.5)
  if name == "smollm3":
    # There are no windows and biases there, and every fourth layer is still.
    model = dataclasses.replace(
      model, windows=(), unrotated=(False, False, False, True),
      qkv_bias=False, o_bias=False, mlp_bias=False,
    )  # fmt: skip
    flat = trees.flatten(params)
    params = trees.unflatten({k: v for k, v in flat.items() if "bias" not in k})
  return model, params


def write(path, name, *, kind=Q.F32, change=lambda tensors: None, keys=None):
  """Writes a file as llama.cpp's converter does, from its description."""
  model, params = checkpoint(name)
  arch = ARCHITECTURES.get(model.family, model.family)
  writer = gguf.GGUFWriter(path, arch)
  gguf_writing.add_sizes(writer, model)
  keys = KEYS.get(name, {}) if keys is None else keys
  gguf_writing.add(writer, arch, keys)
  tensors = gguf_writing.tensors(model, params)
  change(tensors)
  for key, value in tensors.items():
    if value.ndim == 2 and value.dtype == np.float32:
      # Rows are whole blocks of 32, or not narrowed.
      to = Q.F32 if value.shape[-1] % 32 else kind
      packed = gguf.quants.quantize(value, to)
      writer.add_tensor(key, packed, raw_dtype=to)
    else:
      writer.add_tensor(key, value)
  gguf_writing.finish(writer)
  return path


@pytest.mark.parametrize("name", families.NAMES)
def test_a_file_holds_the_parameters_of_its_family(tmp_path, name):
  model, params = checkpoint(name)
  found, loaded = formats_gguf.load(write(tmp_path / "m.gguf", name))
  assert found == model
  for x, y in zip(
    jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True
  ):
    # Gemma's norms were stored plus 1.
    np.testing.assert_allclose(x, y, atol=2e-7 if name == "gemma3" else 0)


@pytest.mark.parametrize(
  ("kind", "step"), [(Q.F16, 1e-3), (Q.Q8_0, 0.01), (Q.Q4_1, 0.2)]
)
def test_narrow_types_are_near(tmp_path, kind, step):
  path = write(tmp_path / "m.gguf", "smollm2", kind=kind)
  _, loaded = formats_gguf.load(path)
  _, params = checkpoint("smollm2")
  x, y = (np.asarray(p["layers"]["up"]["kernel"]) for p in (loaded, params))
  assert 0 < np.abs(x - y).max() < step * np.abs(y).max()


def by_hand(kind):
  """One block of 256 and the numbers that it stands for, from the format."""
  rng = np.random.default_rng(0)
  half = lambda x: np.float16(x).tobytes()
  if kind is Q.Q6_K:  # x = d · scale of 16 · (6 bits - 32)
    six = rng.integers(0, 64, 256)
    scales = rng.integers(-100, 100, 16).astype(np.int8)
    low, high = np.zeros(128, np.uint8), np.zeros(64, np.uint8)
    for i, value in enumerate(six):
      part, at = divmod(i, 128)
      quarter, column = divmod(at, 32)
      low[64 * part + at % 64] |= (value & 15) << (4 * (at // 64))
      high[32 * part + column] |= (value >> 4) << (2 * quarter)
    raw = low.tobytes() + high.tobytes() + scales.tobytes() + half(0.25)
    return raw, 0.25 * np.repeat(scales.astype(float), 16) * (six - 32)
  # Q4_K: x = d · scale of 32 · 4 bits - dmin · minimum of 32
  four = rng.integers(0, 16, 256)
  scale, low = rng.integers(0, 64, (2, 8))
  packed = np.zeros(12, np.uint8)
  for j in range(4):
    packed[j] = scale[j] | (scale[j + 4] >> 4) << 6
    packed[j + 4] = low[j] | (low[j + 4] >> 4) << 6
    packed[j + 8] = (scale[j + 4] & 15) | (low[j + 4] & 15) << 4
  bits = np.zeros(128, np.uint8)
  for i, value in enumerate(four):
    pair, at = divmod(i, 64)
    bits[32 * pair + at % 32] |= value << (4 * (at // 32))
  raw = half(0.5) + half(0.125) + packed.tobytes() + bits.tobytes()
  return raw, 0.5 * np.repeat(scale, 32) * four - 0.125 * np.repeat(low, 32)


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K])
def test_blocks_of_256_are_read_by_the_format(tmp_path, kind):
  raw, expected = by_hand(kind)
  path = tmp_path / "block.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  block = np.frombuffer(raw, np.uint8)[None]
  writer.add_tensor("x", block, raw_dtype=kind)
  gguf_writing.finish(writer)
  file = formats_gguf._File(gguf.GGUFReader(path))
  assert file.shapes()["x"].shape == (1, 256)
  got = file.read("x", (slice(0, 1), slice(10, 200)))
  np.testing.assert_allclose(got[0], expected[10:200], rtol=1e-6)


def test_devices_get_their_parts_of_a_file(tmp_path):
  path = write(tmp_path / "m.gguf", "smollm2", kind=Q.Q8_0)
  mesh = jax.make_mesh(
    (4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )  # fmt: skip

  def placement(name, shape):
    spec = [None] * (len(shape) - 1) + ["x"] if len(shape) > 1 else []
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  _, whole = formats_gguf.load(path)
  _, split = formats_gguf.load(path, placement=placement, dtype=jnp.float32)
  for x, y in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(x, y)


def test_tensors_that_do_not_fit_are_listed(tmp_path):
  def change(tensors):
    del tensors["blk.1.ffn_up.weight"]
    tensors["blk.0.attn_k.weight"] = np.zeros((16, 64), np.float32)
    tensors["extra.weight"] = np.zeros(3, np.float32)

  with pytest.raises(ValueError) as raised:
    formats_gguf.load(write(tmp_path / "m.gguf", "qwen3", change=change))
  text = str(raised.value)
  assert "m.gguf" in text
  assert "blk.1.ffn_up.weight is missing" in text
  assert "blk.0.attn_k.weight is [16, 64] and should be [32, 32]" in text
  assert "extra.weight is not known" in text


def test_what_is_not_read_is_said(tmp_path):
  other = tmp_path / "other.gguf"
  writer = gguf.GGUFWriter(other, "mamba")
  writer.add_tensor("x", np.zeros(4, np.float32))
  gguf_writing.finish(writer)
  with pytest.raises(ValueError, match=r"general\.architecture='mamba'"):
    formats_gguf.load(other)

  def integers(tensors):
    tensors["output_norm.weight"] = np.zeros(32, np.int32)

  with pytest.raises(ValueError, match=r"'output_norm.weight': 'I32'"):
    formats_gguf.load(write(tmp_path / "i.gguf", "qwen3", change=integers))
  with pytest.raises(ValueError, match="no GGUF file at"):
    formats_gguf.load(tmp_path / "absent.gguf")


def described(tmp_path, name, **keys):
  """What a file with these keys says; "__" stands for a dot."""
  keys = {key.replace("__", "."): value for key, value in keys.items()}
  path = write(tmp_path / "m.gguf", name, keys=keys)
  return formats_gguf.describe(path).model


LINEAR = RopeScaling("linear", 4.0)
YARN = RopeScaling(
  "yarn", 4.0, original_context=64, attention_factor=1 + 0.1 * math.log(4)
)


@pytest.mark.parametrize(
  ("keys", "scaling"),
  [
    ({}, None),
    # Llama.cpp takes a factor without a type for linear; files of 2023 have
    # the older key.
    (dict(rope__scaling__factor=4.0), LINEAR),
    (dict(rope__scale_linear=4.0), LINEAR),
    (dict(rope__scaling__type="linear", rope__scale_linear=4.0), LINEAR),
    (dict(rope__scaling__factor=4.0, rope__scale_linear=8.0), LINEAR),
    (dict(rope__scaling__factor=0.0), None),
    (dict(rope__scaling__type="none", rope__scaling__factor=4.0), None),
    (dict(rope__scaling__type="yarn", rope__scaling__factor=4.0,
          context_length=64), YARN),
    (dict(rope__scaling__type="yarn", rope__scaling__factor=4.0,
          rope__scaling__original_context_length=64, context_length=256), YARN),
    (dict(rope__scaling__type="yarn", rope__scaling__factor=4.0,
          context_length=64, rope__scaling__yarn_beta_fast=16.0,
          rope__scaling__yarn_beta_slow=2.0),
     dataclasses.replace(YARN, beta_fast=16.0, beta_slow=2.0)),
  ],
)  # fmt: skip
def test_a_rotation_is_what_llama_cpp_makes_of_the_keys(
  tmp_path, keys, scaling
):
  assert described(tmp_path, "qwen2", **keys).rope_scaling == scaling


@pytest.mark.parametrize(
  ("name", "keys", "message"),
  [
    ("qwen2", dict(rope__scaling__type="longrope"), r"rope\.scaling\.type"),
    ("qwen2", dict(rope__scaling__type="yarn", rope__scaling__factor=4.0,
                   context_length=64, rope__scaling__attn_factor=0.8),
     r"qwen2\.rope\.scaling\.attn_factor=0\.8"),
    ("qwen2", dict(rope__scaling__type="yarn"), "original_context_length"),
    ("qwen2", dict(rope__scaling__yarn_attn_factor=2.0), "yarn_attn_factor=2"),
    ("qwen2", dict(rope__scaling__yarn_log_multiplier=0.1), "log_multiplier"),
    ("qwen2", dict(rope__dimension_count=4), r"rope\.dimension_count=4"),
    ("qwen2", dict(attention__value_length=32), "value_length=32"),
    ("qwen2", dict(attention__sliding_window=9), "sliding_window=9 is not"),
    ("qwen2", dict(logit_scale=0.5), r"qwen2\.logit_scale=0\.5"),
    ("qwen2", dict(final_logit_softcapping=30.0), "final_logit_softcapping"),
    ("smollm2", dict(expert_count=8), "expert_count=8"),
    ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping"),
  ],
)  # fmt: skip
def test_a_key_that_is_not_read_is_named(tmp_path, name, keys, message):
  with pytest.raises(ValueError, match=message):
    described(tmp_path, name, **keys)


def test_keys_that_change_nothing_are_passed_over(tmp_path):
  plain = described(tmp_path, "qwen2")
  assert plain == described(
    tmp_path, "qwen2", expert_count=0, attention__sliding_window=4096,
    context_length=4096, vocab_size=96, rope__dimension_count=8,
    rope__scaling__yarn_ext_factor=-1.0, rope__scaling__yarn_attn_factor=1.0,
  )  # fmt: skip
  assert described(tmp_path, "qwen2", attention__scale=0.25) == (
    dataclasses.replace(plain, query_scale=0.25)
  )


def test_windows_of_gemma_are_by_pattern_or_by_layer(tmp_path):
  windows = lambda **keys: described(tmp_path, "gemma3", **keys).windows
  slide = dict(attention__sliding_window=9)
  assert windows() == ()
  assert windows(**slide) == (9, 9, 9, 9, 9, 0, 9)
  pattern = lambda value: dict(attention__sliding_window_pattern=value)
  assert windows(**slide, **pattern(2)) == (9, 0, 9, 0, 9, 0, 9)
  flags = [1, 0, 0, 1, 0, 0, 1]
  assert windows(**slide, **pattern(flags)) == (9, 0, 0, 9, 0, 0, 9)


@pytest.mark.parametrize(("layers", "scale"), [(62, 8**-0.5), (26, 16**-0.5)])
def test_gemma_27b_is_known_by_its_layers(tmp_path, layers, scale):
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3")
  model, _ = checkpoint("gemma3")
  sized = dataclasses.replace(model, num_layers=layers, windows=())
  gguf_writing.add_sizes(writer, sized)
  writer.add_tensor("token_embd.weight", np.zeros((96, 32), np.float32))
  gguf_writing.finish(writer)
  found = formats_gguf.describe(tmp_path / "m.gguf").model
  assert found.query_scale == scale  # 32 / 4 heads, heads of 16


def test_numbers_by_layer_must_all_be_the_same(tmp_path):
  def describe(heads):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    keys = {
      "block_count": 2, "embedding_length": 32, "attention.head_count": 4,
      "feed_forward_length": [48, 48], "attention.head_count_kv": heads,
      "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    gguf_writing.add(writer, "llama", keys)
    writer.add_tensor("token_embd.weight", np.zeros((96, 32), np.float32))
    gguf_writing.finish(writer)
    return formats_gguf.describe(tmp_path / "m.gguf").model

  model = describe([2, 2])
  assert (model.num_kv_heads, model.mlp_width, model.head_dim) == (2, 48, 8)
  assert model.rope_theta == 1e4
  with pytest.raises(ValueError, match=r"head_count_kv=\[2, 4\] differs"):
    describe([2, 4])


def test_the_factors_of_a_rotation_are_those_of_its_description(tmp_path):
  scaled, params = families.checkpoint("llama3")
  plain, _ = checkpoint("llama3")
  factors = np.asarray(
    rotary.frequencies(plain, local=False)
    / rotary.frequencies(scaled, local=False)
  )

  def change(tensors):
    tensors["rope_freqs.weight"] = factors

  path = write(tmp_path / "m.gguf", "llama3", change=change)
  found, loaded = formats_gguf.load(path)
  assert found.rope_scaling == RopeScaling(
    "factors", factors=tuple(float(x) for x in factors)
  )
  assert hf_config.from_config(hf_config.to_config(found)) == found
  np.testing.assert_allclose(
    rotary.frequencies(found, local=False),
    rotary.frequencies(scaled, local=False),
    rtol=1e-6,
  )
  assert trees.flatten(loaded).keys() == trees.flatten(params).keys()


@pytest.mark.parametrize("keep", [0, 3, 20, 500, 0.1, 0.6, -1])
def test_a_truncated_file_never_loads(tmp_path, keep):
  path = write(tmp_path / "m.gguf", "qwen2")
  whole = path.read_bytes()
  path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else keep])
  with pytest.raises(ValueError, match=r"m\.gguf .* is cut short"):
    formats_gguf.load(path)
