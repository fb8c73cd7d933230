"""A state of every kind of array, and a folder of its checkpoints."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppo_jax.storage import checkpoint

# A failed read leaves coroutines of Orbax that were never awaited.
ORBAX = [
  pytest.mark.usefixtures("collected"),
  pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine:RuntimeWarning",
  ),
]


class Moments(typing.NamedTuple):
  count: jax.Array
  mu: dict


def state(offset=0.0):
  return {
    "params": {
      "dense/kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4) / 3 + offset,
      "half": jnp.array([1.1, -2.3, 3e38], jnp.bfloat16),
    },
    "opt": (Moments(jnp.int32(7), {"a": jnp.full(5, jnp.nan)}), (), None),
    "key": jax.random.key_data(jax.random.key(3)),
    "count": np.int64(2**40),
    "host": np.arange(3, dtype=np.int64),
  }


def bits(tree):
  return [
    (type(x) is np.ndarray, x.dtype, x.shape, np.asarray(x).tobytes())
    for x in map(
      lambda x: np.asarray(x) if isinstance(x, np.generic) else x,
      jax.tree.leaves(tree),
    )
  ]


def make_folder(parent):
  """Three checkpoints: updates 10, 20 and 30."""
  with checkpoint.Checkpoints(parent / "checkpoints", keep=3) as saved:
    for update in (10, 20, 30):
      saved.save(update, state(update), {"update": update, "queue": [1, "é"]})
  return parent / "checkpoints"
