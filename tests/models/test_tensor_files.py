"""Which tensor of which file counts, when a folder says it in another way."""

import contextlib
import json
import shutil

import families
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steppo_jax import trees
from steppo_jax.models.formats import hub, tensor_files
from steppo_jax.pretrained import convert, sources

NAME = "qwen3"
shared = settings(
  max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def same(params, name=NAME):
  for (path, x), (_, y) in zip(
    sorted(trees.flatten(params).items()),
    sorted(trees.flatten(families.checkpoint(name)[1]).items()),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y, err_msg=path)


def tensors(name=NAME):
  return safetensors.numpy.load_file(families.ROOT / name / "model.safetensors")


def same_files(folder, name=NAME):
  """Every tensor is read as the committed file has it."""
  right = tensors(name)
  with contextlib.ExitStack() as stack:
    found = tensor_files.Folder(folder, stack)
    assert found.shapes().keys() == right.keys()
    for each, value in right.items():
      got = found.read(each, (slice(None),) * value.ndim)
      np.testing.assert_array_equal(got, value, err_msg=each)


def written(folder, parts, weight_map=None, name=NAME):
  """A checkpoint of these files, by path; an index if one is given."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  shutil.copy(families.ROOT / name / "config.json", folder)
  for path, held in parts.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    # Files of others say nothing of their format.
    safetensors.numpy.save_file(held, folder / path)
  if weight_map is not None:
    text = json.dumps({"weight_map": weight_map})
    (folder / tensor_files.INDEX).write_text(text)
  return folder


def split(found, parts):
  """The tensors dealt to files, and the index of that."""
  of = {path: {} for path in parts}
  for number, (name, value) in enumerate(sorted(found.items())):
    of[parts[number % len(parts)]][name] = value
  return of, {name: path for path, held in of.items() for name in held}


def test_a_single_file_counts_before_an_index_that_was_left_behind(tmp_path):
  old, index = split(
    {k: v + 1 for k, v in tensors().items()}, ["a.safetensors", "b.safetensors"]
  )
  folder = written(tmp_path / "x", old, index)
  safetensors.numpy.save_file(tensors(), folder / tensor_files.ONE)
  same_files(folder)
  for path in old:  # Nor are the old ones needed.
    (folder / path).unlink()
  same(hub.load(folder)[1])


@shared
@given(
  st.lists(
    st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}", fullmatch=True),
    min_size=1, max_size=4, unique=True,
  ),
  st.booleans(),
)  # fmt: skip
def test_an_index_names_files_anywhere_below(tmp_path, names, twice):
  # A folder cannot have the name of a file.
  parts = [f"{name}.safetensors" for name in names]
  found = tensors()
  of, index = split(found, parts)
  if twice:  # a tensor that another file holds as well, of older weights
    name = min(found)
    for path in parts:
      of[path].setdefault(name, found[name] - 1)
  same_files(written(tmp_path / "x", of, index))


def test_a_tensor_that_the_index_leaves_out_is_read_from_its_file(tmp_path):
  of, index = split(tensors(), ["a.safetensors", "b.safetensors"])
  name = min(index)
  del index[name]
  same_files(written(tmp_path / "x", of, index))
  of["b.safetensors"][name] = of["a.safetensors"][name]
  with pytest.raises(
    ValueError, match=r"a\.safetensors and in .*names neither"
  ):
    hub.load(written(tmp_path / "x", of, index))


@pytest.mark.parametrize(
  ("weight_map", "message"),
  [
    ({"model.norm.weight": "sub/c.safetensors"}, "names sub/c.safetensors, wh"),
    ({"model.norm.weight": "../a.safetensors"}, "is outside of the folder"),
    ({"model.norm.weight": "/a.safetensors"}, "is outside of the folder"),
    ({"model.norm.bias": "a.safetensors"}, "norm.bias is not in a.safetensors"),
    ({"model.norm.weight": 3}, "is no index"),
    ({}, "it names no tensor"),
  ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, weight_map, message):
  folder = written(tmp_path / "x", {"a.safetensors": tensors()}, weight_map)
  with pytest.raises(ValueError, match=message):
    hub.load(folder)


PREFIXES = {
  "torch.compile": lambda n: f"_orig_mod.{n}",
  "compiled layers": lambda n: n.replace(".self_attn", "._orig_mod.self_attn"),
  "data parallel": lambda n: f"module._orig_mod.{n}",
  "sharded": lambda n: f"_fsdp_wrapped_module.{n}".replace(
    ".mlp", "._fsdp_wrapped_module._checkpoint_wrapped_module.mlp"
  ),
  "PEFT, merged": lambda n: f"base_model.model.{n}",
  "no head": lambda n: n.removeprefix("model."),
  "multimodal": lambda n: n.replace("model.", "model.language_model.", 1),
  "multimodal, old": lambda n: f"language_model.{n}",
}


@pytest.mark.parametrize("how", PREFIXES)
def test_what_stands_around_a_decoder_is_taken_off_its_names(tmp_path, how):
  found = {PREFIXES[how](name): x for name, x in tensors("llama3").items()}
  if how.startswith("multimodal"):
    found["model.vision_tower.layers.0.weight"] = np.ones((2, 2), np.int8)
    found["multi_modal_projector.norm.weight"] = np.ones(3, np.float32)
  folder = written(tmp_path / "x", {tensor_files.ONE: found}, name="llama3")
  same_files(folder, "llama3")


def test_names_that_are_not_known_are_said(tmp_path):
  found = tensors()

  def with_(**more):
    folder = written(tmp_path / "x", {tensor_files.ONE: found | more})
    with pytest.raises(ValueError) as raised:
      hub.load(folder)
    return str(raised.value)

  norm = found["model.norm.weight"]
  assert "transformer.norm.weight is not known" in with_(
    **{"transformer.norm.weight": norm}
  )
  assert "norm.weight and norm.weight are both model.norm.weight" in with_(
    **{"norm.weight": norm}
  ).replace("model.norm.weight and norm", "norm.weight and norm")
  assert "is part of an adapter: merge" in with_(
    **{"model.layers.0.self_attn.q_proj.lora_A.default.weight": norm}
  )


def test_mixed_types_are_kept_from_folder_to_folder(tmp_path):
  found = tensors()
  narrow = {
    name: x.astype("bfloat16" if number % 3 else "float16")
    for number, (name, x) in enumerate(sorted(found.items()))
    if number % 4
  }
  folder = written(tmp_path / "x", {tensor_files.ONE: found | narrow})
  (folder / "config.json").write_text(
    (folder / "config.json").read_text().replace('"float32"', '"bfloat16"')
  )
  convert.convert(sources.find(folder), tmp_path / "again", "folder")
  again = safetensors.numpy.load_file(tmp_path / "again" / tensor_files.ONE)
  for name, value in (found | narrow).items():
    assert again[name].dtype == value.dtype, name
    np.testing.assert_array_equal(again[name], value)
  stored = sources.sizes(sources.find(folder)).stored
  assert set(stored) == {"F32", "F16", "BF16"}
  assert sum(stored.values()) == len(found)
  # A matrix of all layers is one array: it takes the type that holds them all.
  _, params = hub.load(folder)
  for path, leaf in trees.flatten(params).items():
    assert leaf.dtype in (np.float32, np.float16, jax.numpy.bfloat16), path
  wide = (found | narrow)["model.layers.0.mlp.up_proj.weight"]
  np.testing.assert_array_equal(
    params["layers"]["up"]["kernel"][0].astype(np.float32),
    wide.astype(np.float32).T,
  )


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize("name", ["config.json", tensor_files.ONE])
def test_a_pointer_of_git_lfs_is_told_as_such(tmp_path, name):
  folder = written(tmp_path / "x", {tensor_files.ONE: tensors()})
  (folder / name).write_bytes(POINTER)
  with pytest.raises(ValueError, match=rf"{name} is a pointer of Git LFS"):
    hub.load(folder)


def test_other_kinds_of_files_are_refused_with_what_to_do(tmp_path):
  folder = written(tmp_path / "x", {})
  (folder / "pytorch_model.bin").write_bytes(b"PK")
  for load in (lambda: sources.find(folder), lambda: hub.load(folder)):
    with pytest.raises(
      ValueError, match=r"pytorch_model\.bin, which is not read: .*save_pretrai"
    ):
      load()
  written(folder, {"model-00001-of-00002.safetensors": tensors()})
  with pytest.raises(ValueError, match=r"copy model\.safetensors\.index\.json"):
    hub.load(folder)
  pointer = tmp_path / "m.gguf"
  pointer.write_bytes(POINTER)
  with pytest.raises(ValueError, match=r"m\.gguf is a pointer of Git LFS"):
    sources.find(pointer)
