"""Checkpoint folders: the same bits both ways, on any devices, or an error."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from marks import some

from steppo_jax import trees
from steppo_jax.models.formats import hub, names


def bits(tree):
  return {
    name: (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
    for name, leaf in trees.flatten(tree).items()
  }


def stored(folder):
  found = {}
  for path in sorted(folder.glob("model*.safetensors")):
    found |= safetensors.numpy.load_file(path)
  return {k: (v.dtype, v.shape, v.tobytes()) for k, v in found.items()}


@pytest.mark.parametrize("limit", [10**9, 20_000], ids=["one file", "many"])
@pytest.mark.parametrize("name", families.NAMES)
def test_a_checkpoint_is_written_as_it_was_read(tmp_path, name, limit):
  model, params = families.checkpoint(name)
  hub.save(tmp_path / "new", model, params, max_file_bytes=limit)
  assert stored(tmp_path / "new") == stored(families.ROOT / name)
  files = list((tmp_path / "new").glob("*.safetensors"))
  assert (len(files) > 3) == (limit < 10**9)
  again, loaded = hub.load(tmp_path / "new")
  assert again == model
  assert bits(loaded) == bits(params)
  assert [p.name for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", some(jnp.bfloat16, slow=[jnp.float16]))
def test_a_narrower_checkpoint_keeps_its_bits(tmp_path, dtype):
  model, params = families.checkpoint("qwen3")
  small = jax.tree.map(lambda x: x.astype(dtype), params)
  hub.save(tmp_path / "small", model, small)
  assert bits(hub.load(tmp_path / "small")[1]) == bits(small)
  _, wide = hub.load(tmp_path / "small", dtype=jnp.float32)
  assert bits(wide) == bits(jax.tree.map(lambda x: x.astype("float32"), small))
  hub.save(tmp_path / "cast", model, params, dtype=dtype)
  assert stored(tmp_path / "cast") == stored(tmp_path / "small")


def by_axis(mesh, axis, name):
  """Splits that axis where the mesh divides it."""

  def placement(path, shape):
    spec = [None] * len(shape)
    if len(shape) > 1 and shape[axis] % mesh.shape[name] == 0:
      spec[axis] = name
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  return placement


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("shape", some((2, 4), slow=[((8, 1),)]))
def test_any_devices_hold_the_same_bits(shape, axis):
  mesh = jax.make_mesh(
    shape, ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  _, params = families.checkpoint("gemma3")
  name = "a" if shape[0] == 8 else "b"
  _, split = hub.load(
    families.ROOT / "gemma3", placement=by_axis(mesh, axis, name)
  )
  assert bits(split) == bits(params)
  kernel = split["layers"]["gate"]["kernel"]
  parts = kernel.addressable_shards
  assert len(parts) == 8
  assert parts[0].data.size * mesh.shape[name] == kernel.size


@pytest.mark.slow
def test_loading_holds_less_than_one_tensor_beside_the_parameters(
  tmp_path, capsys
):
  script = pathlib.Path(families.__file__).parent / "load_memory.py"
  for _ in ("write", "measure"):
    run = subprocess.run(
      [sys.executable, script, tmp_path / "model"],
      capture_output=True, text=True, check=True,
    )  # fmt: skip
  found = json.loads(run.stdout)
  with capsys.disabled():
    print(f"\nloading, in bytes: {found}")
  assert found["largest_tensor"] == 60_000 * 512 * 4
  assert found["peak_beyond_parameters"] < found["largest_tensor"]


def edited(tmp_path, change, name="qwen3"):
  """A copy of a checkpoint whose tensors `change` has edited."""
  folder = tmp_path / "copy"
  shutil.copytree(families.ROOT / name, folder)
  found = safetensors.numpy.load_file(folder / "model.safetensors")
  change(found)
  safetensors.numpy.save_file(found, folder / "model.safetensors")
  return folder


def test_wrong_missing_and_extra_tensors_are_listed(tmp_path):
  def change(found):
    del found["model.layers.1.self_attn.q_norm.weight"]
    found["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 4), np.float32)
    found["model.layers.2.mlp.up_proj.weight"] = np.zeros(1, np.float32)

  with pytest.raises(ValueError) as raised:
    hub.load(edited(tmp_path, change))
  text = str(raised.value)
  assert "model.layers.1.self_attn.q_norm.weight is missing" in text
  assert "0.mlp.up_proj.weight is [3, 4] and should be [48, 32]" in text
  assert "model.layers.2.mlp.up_proj.weight is not known" in text


def test_a_tied_table_may_stand_there_twice_if_it_is_the_same(tmp_path):
  table = "model.embed_tokens.weight"
  same = edited(
    tmp_path / "a", lambda x: x.update({"lm_head.weight": x[table].copy()})
  )
  assert bits(hub.load(same)[1]) == bits(families.checkpoint("qwen3")[1])
  other = edited(
    tmp_path / "b", lambda x: x.update({"lm_head.weight": x[table] + 1})
  )
  with pytest.raises(ValueError, match=r"lm_head\.weight is not the embed"):
    hub.load(other)


def test_what_an_old_checkpoint_derives_is_left_out(tmp_path):
  key = "model.layers.0.self_attn.rotary_emb.inv_freq"
  old = edited(tmp_path, lambda x: x.update({key: np.ones(8, np.float32)}))
  assert bits(hub.load(old)[1]) == bits(families.checkpoint("qwen3")[1])


def test_quantised_tensors_are_refused(tmp_path):
  key = "model.norm.weight"
  made = edited(tmp_path, lambda x: x.update({key: x[key].astype(np.int8)}))
  with pytest.raises(ValueError, match=r"model\.norm\.weight is I8"):
    hub.load(made)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_truncated_file_never_loads(tmp_path, keep):
  folder = edited(tmp_path, lambda x: None)
  path = folder / "model.safetensors"
  whole = path.read_bytes()
  path.write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else keep])
  with pytest.raises(ValueError, match=r"model\.safetensors .* is cut short"):
    hub.load(folder)


def test_files_and_index_must_agree(tmp_path):
  model, params = families.checkpoint("llama3")
  folder = tmp_path / "many"
  hub.save(folder, model, params, max_file_bytes=30_000)
  index = folder / "model.safetensors.index.json"
  listed = json.loads(index.read_text())
  first, second = sorted(set(listed["weight_map"].values()))[:2]
  name = next(k for k, v in listed["weight_map"].items() if v == first)
  moved = {"weight_map": listed["weight_map"] | {name: second}}
  index.write_text(json.dumps(moved))
  with pytest.raises(ValueError, match=f"{name} is not in {second}"):
    hub.load(folder)
  index.write_text("{}")
  with pytest.raises(ValueError, match="is no index"):
    hub.load(folder)
  index.write_text(json.dumps(listed))
  (folder / first).unlink()
  with pytest.raises(ValueError, match=f"names {first}, which is absent"):
    hub.load(folder)


def test_folders_that_cannot_be_read_or_written_are_named(tmp_path):
  model, params = families.checkpoint("qwen3")
  with pytest.raises(ValueError, match="no folder"):
    hub.load(tmp_path / "absent")
  shutil.copy(families.ROOT / "qwen3" / "config.json", tmp_path)
  with pytest.raises(ValueError, match=r"no model\.safetensors"):
    hub.load(tmp_path)
  with pytest.raises(ValueError, match="exists"):
    hub.save(tmp_path, model, params)
  larger = dataclasses.replace(model, vocab_size=97)
  with pytest.raises(ValueError, match=r"embed/embedding is \[96, 32\]"):
    hub.save(tmp_path / "x", larger, params)
  assert not (tmp_path / "x").exists()


def test_parameters_outside_a_family_have_no_name():
  model, _ = families.checkpoint("smollm2")
  with pytest.raises(ValueError, match="layers/q_norm/scale"):
    names.table(dataclasses.replace(model, qk_norm=True))


def test_progress_counts_every_array():
  seen = []
  _, params = hub.load(
    families.ROOT / "smollm2", progress=lambda *x: seen.append(x)
  )
  count = len(jax.tree.leaves(params))
  assert seen == [(i + 1, count) for i in range(count)]
