"""What a model is, as tables: parameters by block, memory by device, words."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.table

from steppo_jax import trees, types
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models import transformer
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import chat_templates
from steppo_jax.pretrained import sources

# Weights, gradient, and two moments of Adam.
_ADAM = 4


class Block(NamedTuple):
  """Parameters of one kind.

  Attributes:
    name: Such as "layers/q".
    shape: Of one layer, where there are several.
    layers: Number of them, 1 for what stands alone.
    count: Parameters in all.
  """

  name: str
  shape: tuple[int, ...]
  layers: int
  count: int


def blocks(model: ModelConfig) -> list[Block]:
  """Every parameter of a decoder, in the order of its names."""
  found = []
  for name, leaf in trees.flatten(transformer.abstract_params(model)).items():
    layered = name.startswith("layers/")
    shape = leaf.shape[1:] if layered else leaf.shape
    layers = leaf.shape[0] if layered else 1
    found.append(Block(name, shape, layers, math.prod(leaf.shape)))
  return found


def per_device(model: ModelConfig, split: Mapping[str, int]) -> int:
  """Parameters that the fullest device holds.

  Args:
    model: Sizes of the decoder.
    split: Devices by axis: data, fsdp, tensor.
  """
  axes = ("data", "fsdp", "tensor")
  mesh = jax.sharding.AbstractMesh(tuple(split[axis] for axis in axes), axes)
  placement = mesh_lib.by_path(mesh)
  total = 0
  like = trees.flatten(transformer.abstract_params(model))
  for name, leaf in like.items():
    total += math.prod(placement(name, leaf.shape).shard_shape(leaf.shape))
  return total


def parse_mesh(text: str) -> dict[str, int]:
  """Devices by axis of a text such as fsdp=4,tensor=2.

  Raises:
    ValueError: an axis is not known or occurs twice, or is no number above 0.
  """
  split = {"data": 1, "fsdp": 1, "tensor": 1}
  seen = set()
  for part in text.split(","):
    axis, _, number = part.partition("=")
    known = axis in split and axis not in seen
    if not (known and number.isascii() and number.isdecimal() and int(number)):
      raise ValueError(
        f"--mesh takes numbers of devices such as data=2,fsdp=4,tensor=1, got "
        f"{text!r}"
      )
    seen.add(axis)
    split[axis] = int(number)
  return split


def show(
  found: sources.Found,
  sizes: sources.Sizes,
  tokenizer: types.Tokenizer | None,
  split: Mapping[str, int],
  dtype: str,
) -> None:
  """Prints all tables.

  Args:
    found: The model.
    sizes: What it is.
    tokenizer: Its tokenizer, None without.
    split: Devices by axis.
    dtype: Of the weights in memory.
  """
  out = rich.console.Console()
  model = sizes.model
  stored = ", ".join(
    f"{kind} x {count}" if count > 1 else kind
    for kind, count in sizes.stored.items()
  )
  out.print(f"{found.path}", markup=False, highlight=False, soft_wrap=True)
  out.print(
    f"{found.kind}, family {model.family}, {model.num_layers} layers of width "
    f"{model.width}, stored as {stored}, context {sizes.context or 'not said'}",
    markup=False, highlight=False, soft_wrap=True,
  )  # fmt: skip
  if found.base is not None:
    out.print(
      f"with adapters, of {found.base.path}",
      markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
  out.print(_blocks(model))
  out.print(_memory(model, split, dtype))
  if tokenizer is None:
    out.print("no tokenizer")
    return
  out.print(_tokens(tokenizer, model))
  template = chat_templates.source_of(getattr(tokenizer, "chat_template", None))
  if not template:
    out.print("no chat template")
  else:
    out.rule("chat template")
    # A control character of a strange file must not reach the terminal.
    printed = "".join(
      x if x.isprintable() or x == "\n" else "�" for x in template
    )
    out.print(printed, markup=False, highlight=False)


def _table(title: str, *columns: str) -> rich.table.Table:
  table = rich.table.Table(title=title, box=rich.box.SIMPLE)
  for at, column in enumerate(columns):
    table.add_column(column, justify="right" if at else "left")
  return table


def _blocks(model: ModelConfig) -> rich.table.Table:
  table = _table("parameters", "block", "shape", "layers", "count")
  found = blocks(model)
  for block in found:
    shape = " x ".join(map(str, block.shape))
    table.add_row(block.name, shape, str(block.layers), f"{block.count:,}")
  table.add_section()
  table.add_row("all", "", "", f"{sum(b.count for b in found):,}")
  return table


def _memory(model: ModelConfig, split, dtype) -> rich.table.Table:
  devices = math.prod(split.values())
  axes = " x ".join(f"{axis} {n}" for axis, n in split.items() if n > 1)
  title = f"memory on each of {devices} devices ({axes})" if axes else "memory"
  size = jnp.dtype(dtype).itemsize
  held = per_device(model, split)
  table = _table(title, "what", "MB")
  megabytes = lambda count: f"{count / 1e6:,.1f}"
  table.add_row(f"weights, {dtype}", megabytes(held * size))
  table.add_row(
    "training with Adam, float32: weights, gradient, two moments",
    megabytes(held * 4 * _ADAM),
  )
  cache = 2 * model.num_layers * model.num_kv_heads * model.head_dim * size
  table.add_row(f"cache of 1,000 tokens, {dtype}", megabytes(1000 * cache))
  return table


def _tokens(tokenizer: types.Tokenizer, model: ModelConfig) -> rich.table.Table:
  table = _table("tokens", "what", "id", "spelling")
  spelt = {v: k for k, v in getattr(tokenizer, "controls", {}).items()}
  table.add_row("vocabulary", f"{tokenizer.vocab_size:,}", "")
  if model.vocab_size != tokenizer.vocab_size:
    table.add_row("rows of the model", f"{model.vocab_size:,}", "")
  ends = [("stop_ids", index) for index in tokenizer.stop_ids]
  named = [(n, getattr(tokenizer, n)) for n in ("bos_id", "pad_id")]
  for name, index in (*ends, *named):
    table.add_row(name, str(index), repr(spelt.get(index, ""))[1:-1])
  for index, text in sorted(spelt.items())[:12]:
    table.add_row("control", str(index), repr(text)[1:-1])
  if len(spelt) > 12:
    table.add_row(f"and {len(spelt) - 12} more", "", "")
  return table
