"""Folders of adapters as PEFT writes them: adapter_config.json, safetensors.

PEFT adds s B A to a matrix W [out, in], with A [r, in] and B [out, r]; here
they lie transposed, one array for all layers (`models.lora`). s is lora_alpha /
r, or lora_alpha / √r with `use_rslora`. A layer that an adapter leaves out has
zeros in A and B, whose gradients are 0: training leaves it out as well. So do
the columns that fill a rank up to that of the widest layer.

Whatever else a configuration switches on is refused by its name.

Source: the behaviour of PEFT 0.21.2 (`tuners/lora`, `tuners/tuners_utils`).
"""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from steppo_jax import files, trees
from steppo_jax.models import lora
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import names, placing, tensor_files

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BEFORE = "base_model.model."

# Read here, or of no influence on what an adapter computes.
_KNOWN = {
  "alpha_pattern", "auto_mapping", "base_model_name_or_path", "eva_config",
  "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
  "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
  "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
  "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
  "use_rslora",
}  # fmt: skip
# Ways to begin that leave the base as it is. The others take a part out of its
# matrices, which are then not those of the base any more.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_UNSET = (None, False, "none", 0)


def base_of(folder: str | os.PathLike) -> str | None:
  """What the configuration says that the adapters belong to.

  Raises:
    ValueError: the configuration cannot be read.
  """
  found = files.read_object(pathlib.Path(folder) / CONFIG)
  return found.get("base_model_name_or_path")


def load(
  folder: str | os.PathLike,
  model: ModelConfig,
  params: Mapping[str, Any],
  *,
  placement: placing.Placement | None = None,
) -> dict[str, Any]:
  """The parameters with the adapters of a folder, in float32.

  Args:
    folder: Holds adapter_config.json and adapter_model.safetensors.
    model: Sizes of the decoder.
    params: Its parameters, without adapters.
    placement: Where each array goes; None for the first device.

  Raises:
    ValueError: a file is missing or broken, the configuration asks for what is
      not computed here, or matrices and configuration do not agree.
  """
  folder = pathlib.Path(folder)
  config = _Config(folder / CONFIG)
  with _opened(folder) as file:
    stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  path = folder / WEIGHTS
  pairs, front = _pairs(path, stored)
  adapters = {}
  for row in _matrices(model):
    ours = row.ours.removesuffix("kernel")
    found = {}
    for layer in range(model.num_layers):
      module = row.theirs.format(layer).removesuffix(".weight")
      pair = pairs.pop(module, None)
      asked = config.covers(front + module.removeprefix("model."))
      if (pair is not None) != asked:
        raise ValueError(
          f"{path} has {'no' if asked else 'an'} adapter of {module}, and "
          f"{config.path} {'names it' if asked else 'does not name it'}"
        )
      if pair is not None:
        found[layer] = config.scaled(
          front + module.removeprefix("model."), *pair
        )
    if found:
      adapters |= _stacked(ours, found, model.num_layers, path)
  if pairs:
    raise ValueError(
      f"{path}: {', '.join(sorted(pairs)[:8])}: only matrices of layers have "
      "adapters here, no embedding and no head"
    )
  if not adapters:
    raise ValueError(f"{path} holds no adapter")
  return _joined(params, adapters, path, placement)


def _opened(folder: pathlib.Path):
  if not (folder / WEIGHTS).is_file():
    raise ValueError(f"no {WEIGHTS} in {folder}{tensor_files.not_read(folder)}")
  return tensor_files.opened(folder / WEIGHTS)


def _matrices(model: ModelConfig) -> Iterator[names.TensorName]:
  """The matrices of layers, which can have adapters."""
  for row in names.table(model):
    if row.ours.startswith("layers/") and row.ours.endswith("/kernel"):
      yield row


_PAIR = re.compile(r"(.+)\.lora_([AB])\.(?:default\.)?weight")


def _pairs(path: pathlib.Path, stored: Mapping[str, np.ndarray]):
  """(A, B) by name of the module; what leads the names of a decoder's modules.

  The lead is "model." for most, "" for a decoder without its head.
  """
  pairs: dict[str, list] = {}
  front = "model."
  for name, value in stored.items():
    match = _PAIR.fullmatch(name)
    if match is None or not name.startswith(_BEFORE):
      raise ValueError(f"{path}: {name} is no adapter of a matrix")
    theirs = match[1].removeprefix(_BEFORE)
    module = tensor_files.text_name(theirs)
    if module.startswith("model."):
      front = theirs.removesuffix(module.removeprefix("model."))
    pair = pairs.setdefault(module, [None, None])
    pair[match[2] == "B"] = np.asarray(value, np.float32)
  half = [name for name, pair in pairs.items() if any(x is None for x in pair)]
  if half:
    raise ValueError(f"{path}: {half[0]} has only one of lora_A and lora_B")
  return pairs, front


class _Config:
  """An adapter's configuration, read as PEFT reads it."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    if not path.is_file():
      raise ValueError(f"no {CONFIG} in {path.parent}")
    self._config = files.read_object(path)
    get = self._config.get
    if get("peft_type") != "LORA":
      self._refuse("peft_type", "only LORA is read")
    for key, value in self._config.items():
      if key not in _KNOWN and value not in _UNSET and value not in ({}, []):
        self._refuse(key, "which is not computed here")
    start = get("init_lora_weights")
    if start not in _BEGINNINGS:
      self._refuse(
        "init_lora_weights",
        "which changes the matrices of the base: convert it to plain LoRA",
      )
    self._targets = get("target_modules")
    if not self._targets:
      self._refuse("target_modules", "and must name matrices")
    for key in ("r", "lora_alpha"):
      value = get(key)
      if isinstance(value, bool) or not isinstance(value, int | float):
        self._refuse(key, "and must be a number")

  def _refuse(self, key: str, why: str):
    raise ValueError(f"{self.path}: {key}={self._config.get(key)!r}, {why}")

  def covers(self, module: str) -> bool:
    """Whether the configuration names a module."""
    get, targets = self._config.get, self._targets
    excluded = get("exclude_modules")
    if excluded and _named(excluded, module):
      return False
    if isinstance(targets, str):
      every = targets.lower() == "all-linear"
      return every or _named(targets, module)
    return _named(targets, module) and self._in_layers(module)

  def _in_layers(self, module: str) -> bool:
    wanted = self._config.get("layers_to_transform")
    if wanted is None or wanted == []:
      return True
    patterns = self._config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    expressions = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in patterns]
    for expression in expressions or [r".*?\.[^.]*\.(\d+)\."]:
      match = re.match(expression, module)
      if match:
        layers = [wanted] if isinstance(wanted, int) else wanted
        return int(match[1]) in layers
    return False

  def scaled(self, module: str, a: np.ndarray, b: np.ndarray):
    """A [in, r], B [r, out] and s of a module, whose rank is checked."""
    rank = self._of(module, "rank_pattern", "r")
    alpha = self._of(module, "alpha_pattern", "lora_alpha")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
      raise ValueError(
        f"{self.path}: the rank of {module} is {rank}, its lora_A is "
        f"{list(a.shape)} and its lora_B {list(b.shape)}"
      )
    root = bool(self._config.get("use_rslora"))
    return a.T, b.T, alpha / (rank**0.5 if root else rank)

  def _of(self, module: str, pattern: str, default: str) -> float:
    for key, value in (self._config.get(pattern) or {}).items():
      if re.match(rf"(.*\.)?({key})$", module):
        return value
    return self._config[default]


def _named(targets: str | Sequence[str], module: str) -> bool:
  """A whole-name regular expression, or a list of ends of names."""
  if isinstance(targets, str):
    return re.fullmatch(targets, module) is not None
  return any(module == t or module.endswith(f".{t}") for t in targets)


def _stacked(ours, found, num_layers, path):
  """One array of all layers, zeros where a layer has no adapter."""
  widest = max(a.shape[1] for a, _, _ in found.values())
  wide, out = next((a.shape[0], b.shape[1]) for a, b, _ in found.values())
  a_lir = np.zeros((num_layers, wide, widest), np.float32)
  b_lro = np.zeros((num_layers, widest, out), np.float32)
  scale_l = np.ones(num_layers, np.float32)
  for layer, (a, b, scale) in found.items():
    rank = a.shape[1]
    if (a.shape[0], b.shape[1]) != (wide, out):
      raise ValueError(f"{path}: layers of {ours} have adapters of other sizes")
    a_lir[layer, :, :rank], b_lro[layer, :rank] = a, b
    scale_l[layer] = scale
  return {
    f"{ours}lora_a": a_lir,
    f"{ours}lora_b": b_lro,
    f"{ours}lora_scale": scale_l,
  }


def _joined(params, adapters, path, placement):
  flat = trees.flatten(params)
  for name, value in adapters.items():
    module, _, leaf = name.rpartition("/")
    _, wide, out = flat[f"{module}/kernel"].shape
    if leaf == "lora_a" and value.shape[1] != wide:
      raise ValueError(
        f"{path}: lora_A of {module} takes {value.shape[1]} numbers, the base "
        f"has {wide}"
      )
    if leaf == "lora_b" and value.shape[2] != out:
      raise ValueError(
        f"{path}: lora_B of {module} gives {value.shape[2]} numbers, the base "
        f"has {out}"
      )
    value = jnp.asarray(value)
    if placement is not None:
      value = jnp.asarray(value, device=placement(name, value.shape))
    flat[name] = value
  return trees.unflatten(dict(sorted(flat.items())))


def save(
  folder: str | os.PathLike,
  model: ModelConfig,
  params: Mapping[str, Any],
  *,
  base: str | None,
) -> None:
  """Writes adapters as PEFT, transformers and vLLM read them.

  All matrices get one rank and one lora_alpha, which every reader knows:
  smaller ranks are filled up with zeros, other scales become part of B.

  Args:
    folder: Made if it is missing; the two files in it are replaced.
    model: Sizes of the decoder.
    params: Its parameters with adapters.
    base: Path or name of the model without them, for the configuration.

  Raises:
    ValueError: there are no adapters.
  """
  if not lora.has(params):
    raise ValueError(f"there are no adapters to write to {folder}")
  flat = {k: np.asarray(v) for k, v in trees.flatten(params).items()
          if "/lora_" in k}  # fmt: skip
  rank = max(v.shape[2] for k, v in flat.items() if k.endswith("lora_a"))
  scale = max(float(v.max()) for k, v in flat.items() if k.endswith("_scale"))
  tensors, targets = {}, set()
  for row in _matrices(model):
    ours = row.ours.removesuffix("kernel")
    if f"{ours}lora_a" not in flat:
      continue
    a, b, own = (flat[f"{ours}lora_{x}"] for x in ("a", "b", "scale"))
    if (own != np.float32(scale)).any():
      b = b * (own / np.float32(scale))[:, None, None]
    more = rank - a.shape[2]
    a = np.pad(a, ((0, 0), (0, 0), (0, more)))
    b = np.pad(b, ((0, 0), (0, more), (0, 0)))
    for layer in range(model.num_layers):
      module = row.theirs.format(layer).removesuffix(".weight")
      targets.add(module.rpartition(".")[2])
      for name, value in (("A", a[layer].T), ("B", b[layer].T)):
        tensors[f"{_BEFORE}{module}.lora_{name}.weight"] = np.ascontiguousarray(
          value
        )
  alpha = scale * rank
  whole = round(alpha)
  if np.float32(whole / rank) == np.float32(scale):
    alpha = whole
  config = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
    "base_model_name_or_path": base, "revision": None, "r": rank,
    "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": sorted(targets),
    "bias": "none", "fan_in_fan_out": False, "use_rslora": False,
    "use_dora": False, "modules_to_save": None, "init_lora_weights": True,
    "layers_to_transform": None, "layers_pattern": None, "rank_pattern": {},
    "alpha_pattern": {},
  }  # fmt: skip
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with files.replacing(folder / WEIGHTS) as new:
    safetensors.numpy.save_file(tensors, new, metadata={"format": "pt"})
  files.replace(folder / CONFIG, json.dumps(config, indent=1) + "\n")
