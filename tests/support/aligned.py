"""Arrays of the host that devices read where they lie, and what spoils them."""

import jax
import numpy as np


def copy(x):
  """A copy at an address that XLA takes without copying, a multiple of 64."""
  x = np.asarray(x)
  room = np.zeros(x.nbytes + 64, np.uint8)
  begin = -room.ctypes.data % 64
  there = room[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
  there[...] = x
  return there


def spoil(tree):
  """Fills arrays with ones."""
  for x in jax.tree.leaves(tree):
    x[...] = 1
