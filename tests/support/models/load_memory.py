"""Peak of host memory while a checkpoint is loaded, run in a process alone.

    python tests/support/models/load_memory.py FOLDER; python ... FOLDER

writes a random checkpoint of several files to FOLDER the first time. The second
time, with nothing allocated and freed before, it loads it onto two devices,
half of every table and matrix on each, and prints one JSON line. On a CPU the
devices' memory is the host's: what the parameters take in the end is taken off.
What is compiled on the way counts.
"""

import json
import os
import sys
import threading
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np

from steppo_jax.models import transformer
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import hub

MODEL = ModelConfig(
  vocab_size=60_000, width=512, num_layers=6, num_heads=8, num_kv_heads=4,
  head_dim=64, mlp_width=3072,
)  # fmt: skip


def anonymous() -> int:
  """Bytes of memory that no file backs."""
  with open("/proc/self/status") as status:
    line = next(line for line in status if line.startswith("RssAnon"))
  return 1024 * int(line.split()[1])


def halves(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
  """The last axis but one over two devices, vectors on both."""
  mesh = jax.make_mesh((2,), ("fsdp",))
  spec = [None] * len(shape)
  if len(shape) > 1 and "norm" not in path:
    spec[-2] = "fsdp"
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


def write(folder: str) -> None:
  """A random checkpoint of several files."""
  like = transformer.abstract_params(MODEL)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal(x.shape, np.float32)
  hub.save(folder, MODEL, jax.tree.map(draw, like), max_file_bytes=10**8)


def measure(folder: str) -> None:
  """Loads, measures and prints."""
  jax.block_until_ready(jax.numpy.zeros(1) + 1)
  before, peak, done = anonymous(), [0], threading.Event()

  def watch():
    while not done.is_set():
      peak[0] = max(peak[0], anonymous())
      time.sleep(1e-3)

  watcher = threading.Thread(target=watch)
  watcher.start()
  _, params = jax.block_until_ready(hub.load(folder, placement=halves))
  done.set()
  watcher.join()
  leaves = jax.tree.leaves(params)
  sizes = [x.nbytes for x in leaves]
  one = max(x.nbytes // (1 if x.ndim < 3 else x.shape[0]) for x in leaves)
  print(json.dumps({
    "parameters": sum(sizes), "largest_tensor": one,
    "peak_beyond_parameters": peak[0] - before - sum(sizes),
  }))  # fmt: skip


if __name__ == "__main__":
  (measure if os.path.isdir(sys.argv[1]) else write)(sys.argv[1])
