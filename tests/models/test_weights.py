"""Weights keep their bits, and a wrong file says what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppo_jax import trees
from steppo_jax.models.formats import weights


def params():
  return {
    "embed": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4) / 3,
    "layers": {
      "norm": {"scale": jnp.array([1.1, -2.3], jnp.bfloat16)},
      "half": jnp.array([0.1], jnp.float16),
      "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    },
    "scalar": jnp.float32(0.1),
  }


def bits(tree):
  return {
    name: (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
    for name, leaf in trees.flatten(tree).items()
  }


def test_weights_and_facts_come_back_bit_for_bit(tmp_path):
  path = tmp_path / "new" / "model.safetensors"
  facts = {"model": '{"width": 4}', "seed": "0", "command": "é"}
  weights.save_params(path, params(), facts)
  loaded, metadata = weights.load_params(path)
  assert metadata == facts
  assert bits(loaded) == bits(params())
  assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_the_bytes_cost_only_rounding(tmp_path, dtype):
  tree = {"w": jax.random.normal(jax.random.key(0), (400, 100))}
  weights.save_params(tmp_path / "full", tree, {})
  weights.save_params(tmp_path / "half", tree, {}, dtype=dtype)
  assert (tmp_path / "full").stat().st_size > 160_000
  assert (tmp_path / "half").stat().st_size < 81_000
  loaded, _ = weights.load_params(tmp_path / "half", dtype=jnp.float32)
  expected = tree["w"].astype(dtype).astype(jnp.float32)
  assert bits(loaded) == bits({"w": expected})


def test_integers_are_never_narrowed(tmp_path):
  tree = {"n": np.array([2**30 + 1], np.int32)}
  weights.save_params(tmp_path / "n", tree, {}, dtype=jnp.bfloat16)
  loaded, _ = weights.load_params(tmp_path / "n", dtype=jnp.float32)
  assert bits(loaded) == bits(tree)


def test_a_number_too_large_for_the_type_is_named(tmp_path):
  tree = {"a": {"big": jnp.array([1e6])}}
  with pytest.raises(ValueError, match="a/big overflows as float16"):
    weights.save_params(tmp_path / "w", tree, {}, dtype=jnp.float16)
  assert not list(tmp_path.iterdir())


def test_differences_to_the_model_are_named(tmp_path):
  trees.check_like(params(), params())
  abstract = jax.eval_shape(lambda: params()["layers"]["norm"])
  trees.check_like(params()["layers"]["norm"], abstract)
  wrong = params()
  wrong["embed"] = jnp.zeros((3, 5))
  wrong["extra"] = {"bias": jnp.zeros(1)}
  del wrong["layers"]["norm"]
  with pytest.raises(ValueError) as raised:
    trees.check_like(wrong, params())
  text = str(raised.value)
  assert "layers/norm/scale is missing" in text
  assert "extra/bias is not known" in text
  assert "embed is [3, 5] and should be [3, 4]" in text


def test_types_may_differ_from_the_model():
  trees.check_like(
    {"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.ones(2, jnp.float32)}
  )


@pytest.mark.parametrize("keep", [0, 4, 40, 300, -1])
def test_a_truncated_file_is_an_error(tmp_path, keep):
  path = tmp_path / "model.safetensors"
  weights.save_params(path, params(), {"seed": "0"})
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r"model\.safetensors .* cut short"):
    weights.load_params(path)


def test_a_missing_file_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no weights at"):
    weights.load_params(tmp_path / "absent.safetensors")


def test_what_cannot_be_named_is_an_error(tmp_path):
  with pytest.raises(ValueError, match=r"key 'a/b' under 'x/'"):
    weights.save_params(tmp_path / "w", {"x": {"a/b": jnp.ones(1)}}, {})
  with pytest.raises(ValueError, match="metadata 'seed' must be a string"):
    weights.save_params(tmp_path / "w", params(), {"seed": 0})
