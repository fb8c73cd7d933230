"""Folders of adapters as PEFT writes them, read and written."""

import dataclasses
import functools
import json
import pathlib
import shutil

import families
import jax
import numpy as np
import pytest
import safetensors.numpy

from steppo_jax import trees
from steppo_jax.models import lora, transformer
from steppo_jax.models.formats import hf_config, names, peft
from steppo_jax.pretrained import convert, policy, sources
from steppo_jax.storage import checkpoint

NAME = "qwen3"
PLAIN = {
  "peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none",
  "target_modules": ["q_proj", "down_proj"], "base_model_name_or_path": "base",
}  # fmt: skip


def modules(ends=("self_attn.q_proj", "mlp.down_proj"), layers=(0, 1)):
  return [f"model.layers.{n}.{end}" for n in layers for end in ends]


@functools.cache
def shapes():
  found = safetensors.numpy.load_file(
    families.ROOT / NAME / "model.safetensors"
  )
  return {name: value.shape for name, value in found.items()}


def pair(module, rank, seed):
  """A [r, in] and B [out, r] that fit a matrix of the base."""
  out, wide = shapes()[f"{module}.weight"]
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 4
  return draw(rank, wide), draw(out, rank)


def written(folder, config, ranks, *, rename=lambda name: name):
  """An adapter's folder: {module: rank}; the base lies in it."""
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(families.ROOT / NAME, folder / "base")
  (folder / peft.CONFIG).write_text(json.dumps(PLAIN | config))
  tensors = {}
  for seed, (module, rank) in enumerate(sorted(ranks.items())):
    for name, value in zip("AB", pair(module, rank, seed), strict=True):
      key = f"base_model.model.{module}.lora_{name}.weight"
      tensors[rename(key)] = value
  safetensors.numpy.save_file(tensors, folder / peft.WEIGHTS)
  return folder


def by_hand(ranks, scales):
  """s B A of every module, from the file's own tensors."""
  found = {}
  for seed, (module, rank) in enumerate(sorted(ranks.items())):
    a, b = pair(module, rank, seed)
    found[module] = scales[module] * (b @ a)
  return found


def added(params, model):
  """What adapters add to each matrix, as [out, in]."""
  flat, found = trees.flatten(params), {}
  for row in names.table(model):
    at = row.ours.removesuffix("kernel")
    if f"{at}lora_a" not in flat:
      continue
    a, b, s = (np.asarray(flat[f"{at}lora_{x}"]) for x in ("a", "b", "scale"))
    for layer in range(model.num_layers):
      module = row.theirs.format(layer).removesuffix(".weight")
      found[module] = s[layer] * (a[layer] @ b[layer]).T
  return found


@functools.cache
def base(name=NAME):
  """Sizes of a family, and matrices of zeros."""
  model = hf_config.from_config(families.ROOT / name)
  like = transformer.abstract_params(model)
  return model, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), like)


def adapted(name=NAME, *, rank=2, scale=3.0):
  """Sizes, and parameters with adapters that do something."""
  model, params = base(name)
  flat, rng = trees.flatten(params), np.random.default_rng(0)
  for path in [p for p in flat if p.endswith("/kernel")]:
    layers, wide, out = flat[path].shape
    at = path.removesuffix("kernel")
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    flat[f"{at}lora_a"] = draw(layers, wide, rank)
    flat[f"{at}lora_b"] = draw(layers, rank, out)
    flat[f"{at}lora_scale"] = np.full(layers, scale, np.float32)
  return model, trees.unflatten(flat)


def read(folder):
  """What a command does, but for reading the base."""
  found = sources.find(folder)
  assert (found.kind, found.base.kind) == ("adapter", "folder")
  return peft.load(folder, *base())


CASES = {
  "a list": ({}, modules(), {}),
  "a pattern": (
    {"target_modules": r".*\.(q_proj|down_proj)"}, modules(), {}
  ),
  "one name": (
    {"target_modules": ["layers.1.mlp.up_proj"]},
    modules(["mlp.up_proj"], [1]), {},
  ),
  "all-linear": (
    {"target_modules": "all-linear"},
    modules(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
             "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
             "mlp.down_proj"]), {},
  ),
  "some layers": (
    {"layers_to_transform": [1], "layers_pattern": "layers"},
    modules(layers=[1]), {},
  ),
  "excluded": (
    {"exclude_modules": ["layers.0.mlp.down_proj"]},
    [m for m in modules() if m != "model.layers.0.mlp.down_proj"], {},
  ),
  "ranks": (
    {"rank_pattern": {"down_proj": 5, r".*\.0\.self_attn\.q_proj": 1},
     "alpha_pattern": {"layers.1.self_attn.q_proj": 8}},
    modules(),
    {"model.layers.0.mlp.down_proj": 5, "model.layers.1.mlp.down_proj": 5,
     "model.layers.0.self_attn.q_proj": 1},
  ),
  "rslora": (
    {"use_rslora": True, "rank_pattern": {"down_proj": 4}}, modules(),
    {"model.layers.0.mlp.down_proj": 4, "model.layers.1.mlp.down_proj": 4},
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_adapters_are_read_as_their_configuration_says(tmp_path, case):
  config, named, own = CASES[case]
  ranks = {module: own.get(module, 2) for module in named}
  alphas = dict.fromkeys(named, 6.0)
  if case == "ranks":
    alphas["model.layers.1.self_attn.q_proj"] = 8.0
  root = 0.5 if config.get("use_rslora") else 1.0
  scales = {m: alphas[m] / ranks[m] ** root for m in named}
  folder = written(tmp_path / "x", config, ranks)
  wanted = by_hand(ranks, scales)
  model, params = base()
  loaded = peft.load(folder, model, params)
  assert trees.flatten(lora.off(loaded)).keys() == trees.flatten(params).keys()
  # Written and read again it adds the same, in one rank and one alpha.
  peft.save(tmp_path / "again", model, loaded, base=None)
  again = peft.load(tmp_path / "again", model, params)
  for made in (loaded, again):
    got = added(made, model)
    for module, value in got.items():
      right = wanted.get(module, np.zeros_like(value))
      np.testing.assert_allclose(value, right, atol=2e-6, err_msg=module)
    assert got.keys() >= wanted.keys()


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
    ({"use_dora": True}, "use_dora=True"),
    ({"bias": "all"}, "bias='all'"),
    ({"lora_bias": True}, "lora_bias=True"),
    ({"peft_type": "IA3"}, "peft_type='IA3', only LORA is read"),
    ({"layer_replication": [[0, 2]]}, "layer_replication="),
    ({"something_new": {"a": 1}}, "something_new="),
    ({"init_lora_weights": "pissa"}, "changes the matrices of the base"),
    ({"target_modules": ["q_proj"]}, "has an adapter of model.layers.0.mlp.d"),
    ({"target_modules": ["q_proj", "down_proj", "o_proj"]},
     "has no adapter of model.layers.0.self_attn.o_proj, and"),
    ({"target_modules": None}, "target_modules=None"),
    ({"r": 3}, r"the rank of model.layers.0.self_attn.q_proj is 3, its lora_A"),
    ({"r": None}, "r=None, and must be a number"),
    ({"base_model_name_or_path": None}, "does not name the model"),
    ({"base_model_name_or_path": "Nobody/Nothing"},
     "adapters of Nobody/Nothing, which is not here"),
  ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(tmp_path, config, message):
  ranks = dict.fromkeys(modules(), 2)
  folder = written(tmp_path / "x", config, ranks)
  with pytest.raises(ValueError, match=message):
    read(folder)
  if "base_model_name_or_path" in config:  # the option says where it is
    found = sources.find(folder, base=str(folder / "base"))
    assert found.base.path == folder / "base"


@pytest.mark.parametrize(
  ("rename", "message"),
  [
    (lambda n: n.replace("lora_A", "lora_embedding_A"), "is no adapter of a m"),
    (lambda n: n.replace("base_model.model.", ""), "is no adapter of a matrix"),
    (lambda n: n.replace("model.layers.1.mlp.down_proj", "lm_head"),
     "has no adapter of model.layers.1.mlp.down_proj"),
    (lambda n: n.replace("layers.1.", "layers.2."), "has no adapter of model"),
  ],
)  # fmt: skip
def test_tensors_that_are_no_adapters_of_matrices_are_said(
  tmp_path, rename, message
):
  folder = written(
    tmp_path / "x", {}, dict.fromkeys(modules(), 2), rename=rename
  )
  with pytest.raises(ValueError, match=message):
    read(folder)


def test_a_head_or_an_embedding_has_no_adapter(tmp_path):
  folder = written(tmp_path / "x", {}, dict.fromkeys(modules(), 2))
  path = folder / peft.WEIGHTS
  found = safetensors.numpy.load_file(path)
  for name, value in zip("AB", pair(modules()[0], 2, 0), strict=True):
    found[f"base_model.model.lm_head.lora_{name}.weight"] = value
  safetensors.numpy.save_file(found, path)
  with pytest.raises(ValueError, match="lm_head: only matrices of layers"):
    read(folder)
  path.unlink()
  (folder / "adapter_model.bin").write_bytes(b"PK")
  with pytest.raises(ValueError, match=r"adapter_model\.bin, which is not"):
    read(folder)


def test_a_folder_of_a_model_and_adapters_is_refused(tmp_path):
  folder = written(tmp_path / "x", {}, dict.fromkeys(modules(), 2))
  for path in (folder / "base").iterdir():
    shutil.copy(path, folder)
  with pytest.raises(ValueError, match=r"adapter_config\.json and model\.safe"):
    sources.find(folder)


@pytest.mark.parametrize("name", families.NAMES)
def test_a_written_folder_has_what_other_readers_know(tmp_path, name):
  model, made = adapted(name, rank=3, scale=5 / 3)
  peft.save(tmp_path / "x", model, made, base="base")
  config = json.loads((tmp_path / "x" / peft.CONFIG).read_text())
  assert (config["r"], config["lora_alpha"]) == (3, 5)
  assert config["target_modules"] == [
    "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
  ]  # fmt: skip
  found = safetensors.numpy.load_file(tmp_path / "x" / peft.WEIGHTS)
  assert len(found) == 2 * 7 * model.num_layers
  a = found["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
  np.testing.assert_array_equal(a.T, made["layers"]["up"]["lora_a"][1])
  with pytest.raises(ValueError, match="there are no adapters"):
    peft.save(tmp_path / "y", *base(), base=None)


def test_adapters_of_a_checkpoint_are_converted_and_start_a_policy(tmp_path):
  model, params = adapted()
  # The base is not what the run trained: its matrices are those of the folder.
  of = families.ROOT / NAME
  with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=1) as store:
    store.save(3, {"policy": params}, {"minutes": 1.0})
  convert.convert(
    sources.find(tmp_path), tmp_path / "out", "peft", like=sources.find(of)
  )
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
    peft.CONFIG, peft.WEIGHTS
  ]  # fmt: skip

  class Words:
    vocab_size = num_ids = model.vocab_size

  again, loaded = policy.load_policy(str(tmp_path / "out"), Words())
  assert again == dataclasses.replace(model, num_ids=model.vocab_size)
  assert lora.has(loaded)
  assert not lora.has(sources.load(sources.find(tmp_path / "out"))[1])
  flat = trees.flatten(loaded)
  for name, x in trees.flatten(params).items():
    if "lora_" in name:
      np.testing.assert_array_equal(flat[name], x, err_msg=name)
  with pytest.raises(ValueError, match="there are no adapters to write"):
    convert.convert(sources.find(of), tmp_path / "no", "peft")
  assert not (tmp_path / "no").exists()
  pathlib.Path(tmp_path / "out" / peft.WEIGHTS).write_bytes(b"")
  with pytest.raises(ValueError, match="is cut short"):
    policy.load_policy(str(tmp_path / "out"), Words())
