"""The committed checkpoints of every family, and rows to run them on."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from steppo_jax.models import attend, transformer
from steppo_jax.models.formats import hub

ROOT = pathlib.Path(__file__).parents[2] / "fixtures" / "checkpoints"
NAMES = (
  "smollm2", "llama3", "qwen2", "qwen3", "gemma3", "smollm3", "olmo3"
)  # fmt: skip
# As in fixtures/make_checkpoints.py.
SHARED, LENGTHS = 18, (40, 33)


@functools.cache
def checkpoint(name):
  """Sizes and parameters."""
  return hub.load(ROOT / name)


@functools.cache
def recorded(name):
  """Ids of the two sequences, and transformers' logits of each."""
  found = safetensors.numpy.load_file(ROOT / name / "recorded.safetensors")
  ids = np.split(found["tokens"], [LENGTHS[0]])
  right = [found["right"][i, :n] for i, n in enumerate(LENGTHS)]
  left = [found["left"][i, -n:] for i, n in enumerate(LENGTHS)]
  return ids, right, left


def logits(model, params, tokens, positions, end, *, block=64):
  """[B, T, V] of rows under the interval mask, as the learner runs them."""
  tokens, positions, end = (
    jnp.asarray(x, jnp.int32) for x in (tokens, positions, end)
  )
  run = attend.over_rows(
    end, positions, block=block, implementation="xla", mesh=None
  )
  hidden = transformer.apply(model, params, tokens, positions, run)
  return transformer.logits(model, params, hidden)


jitted = jax.jit(logits, static_argnums=0, static_argnames="block")


def padded(ids, *, left):
  """Rows (tokens, positions, end) and the slots of each sequence."""
  width = max(LENGTHS)
  rows = [np.zeros((2, width), np.int32) for _ in range(3)]
  slots = []
  for row, one in enumerate(ids):
    start = width - len(one) if left else 0
    at = np.arange(start, start + len(one))
    rows[0][row, at] = one
    rows[1][row, at] = at - start
    rows[2][row, at] = start + len(one)
    slots.append((row, at))
  return rows, slots


def packed(ids):
  """Both sequences in one row, each a tree of its own."""
  tokens = np.concatenate(ids)[None]
  positions = np.concatenate([np.arange(len(x)) for x in ids])[None]
  end = np.repeat(np.cumsum([len(x) for x in ids]), [len(x) for x in ids])[None]
  split = len(ids[0])
  slots = [(0, np.arange(split)), (0, np.arange(split, tokens.shape[1]))]
  return [tokens, positions, end], slots


def branched(ids):
  """Their common beginning once, and a branch for each."""
  first, second = ids
  total = len(first) + len(second) - SHARED
  tokens = np.concatenate([first, second[SHARED:]])[None]
  positions = np.concatenate(
    [np.arange(len(first)), np.arange(SHARED, len(second))]
  )[None]
  end = np.full((1, total), total)
  end[0, SHARED : len(first)] = len(first)
  branch = np.arange(len(first), total)
  slots = [
    (0, np.arange(len(first))),
    (0, np.concatenate([np.arange(SHARED), branch])),
  ]
  return [tokens, positions, end], slots


def peer_tokens(vocab_size):
  """[1, T], the ids of `peer_logits.tokens`."""
  return (np.arange(40, dtype=np.int32)[None] * 37 + 11) % vocab_size
