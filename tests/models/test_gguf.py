"""GGUF files, written here by the package gguf: names, order, types, faults."""

import dataclasses

import families
import gguf_writing
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppo_jax.models.formats import gguf as formats_gguf

gguf = pytest.importorskip("gguf", reason="pip install 'steppo_jax[gguf]'")
Q = gguf.GGMLQuantizationType


def checkpoint(name):
  """A family's sizes and parameters as a GGUF file can say them."""
  model, params = families.checkpoint(name)
  if name == "llama3":
    model = dataclasses.replace(model, rope_scaling=None)
  if name == "gemma3":
    model = dataclasses.replace(model, query_scale=model.head_dim**-0.5)
  return model, params


def write(path, name, *, kind=Q.F32, change=lambda tensors: None):
  """Writes a file as llama.cpp's converter does, from its description."""
  model, params = checkpoint(name)
  arch = model.family
  writer = gguf.GGUFWriter(path, arch)
  gguf_writing.add_sizes(writer, model)
  if model.rope_scaling is not None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(model.rope_scaling.factor)
  if model.windows:
    writer.add_sliding_window(9)
    writer.add_final_logit_softcapping(model.softcap)
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

  def scaled(tensors):
    tensors["rope_freqs.weight"] = np.ones(8, np.float32)

  with pytest.raises(ValueError, match=r"rope_freqs\.weight is not read"):
    formats_gguf.load(write(tmp_path / "m.gguf", "llama3", change=scaled))

  def integers(tensors):
    tensors["output_norm.weight"] = np.zeros(32, np.int32)

  with pytest.raises(ValueError, match=r"'output_norm.weight': 'I32'"):
    formats_gguf.load(write(tmp_path / "i.gguf", "qwen3", change=integers))
  with pytest.raises(ValueError, match="no GGUF file at"):
    formats_gguf.load(tmp_path / "absent.gguf")


@pytest.mark.parametrize("keep", [0, 3, 20, 500, 0.1, 0.6, -1])
def test_a_truncated_file_never_loads(tmp_path, keep):
  path = write(tmp_path / "m.gguf", "qwen2")
  whole = path.read_bytes()
  path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else keep])
  with pytest.raises(ValueError, match=r"m\.gguf .* is cut short"):
    formats_gguf.load(path)
