"""Compile the attention kernel for a TPU ahead of time, without a TPU.

    python tpu/compile_attention.py

Needs an environment with `jax[tpu]` (about 700 MB) and chex, apart from the
project's own, and runs from any folder. It compiles the forward pass and the
forward with the backward pass for one chip of a v5e:2x2, in bfloat16 and
float32, with heads of 128 and 64, on 2 rows of 4,096 tokens with 8 query heads
and 2 key heads, and prints for each: the seconds it took to compile, the number
of Mosaic kernels in the program, the device memory of its temporary arrays. It
ends with status 1 if a program does not compile or lacks a kernel. Nothing is
run, so nothing is said about speed or numbers.
"""

import os
import pathlib
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
# The compiler asks for the machine it runs on and waits for an answer.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from steppo_jax.ops import attention_pallas

TOPOLOGY = "v5e:2x2"
ROWS, TOKENS, HEADS, KEY_HEADS, BLOCK = 2, 4096, 8, 2, 512


def forward(q, k, v, subtree_end):
  return attention_pallas.interval_attention_tpu(
    q, k, v, subtree_end, block_q=BLOCK, block_k=BLOCK, interpret=False
  )


def backward(q, k, v, subtree_end, dout):
  out, pull = jax.vjp(lambda *x: forward(*x, subtree_end), q, k, v)
  return out, pull(dout)


def arguments(dtype, head_dim, sharding):
  def array(*shape, dtype=dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  q = array(ROWS, TOKENS, HEADS, head_dim)
  k = array(ROWS, TOKENS, KEY_HEADS, head_dim)
  return q, k, k, array(ROWS, TOKENS, dtype=jnp.int32), q


def main():
  topology = topologies.get_topology_desc(
    platform="tpu", topology_name=TOPOLOGY
  )
  device = topology.devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  print(
    f"jax {jax.__version__}, {TOPOLOGY} ({device.device_kind}), "
    f"B={ROWS} T={TOKENS} H={HEADS} KV={KEY_HEADS} block={BLOCK}"
  )
  wrong = 0
  for dtype in (jnp.bfloat16, jnp.float32):
    for head_dim in (128, 64):
      arrays = arguments(dtype, head_dim, sharding)
      for function, inputs, kernels in (
        (forward, arrays[:4], 1),
        (backward, arrays, 3),
      ):
        name = f"{function.__name__:8} {dtype.__name__:8} D={head_dim:<3}"
        start = time.perf_counter()
        try:
          compiled = jax.jit(function).lower(*inputs).compile()
        except Exception as error:
          print(f"{name}: refused: {error}")
          wrong += 1
          continue
        seconds = time.perf_counter() - start
        found = compiled.as_text().count("tpu_custom_call")
        megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(
          f"{name}: compiled in {seconds:.1f} s, {found} Mosaic kernels, "
          f"{megabytes:.1f} MB temporary"
        )
        wrong += found != kernels
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main())
