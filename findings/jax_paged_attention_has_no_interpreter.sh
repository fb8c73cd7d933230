#!/usr/bin/env bash
# jax 0.10.2: its attention kernel for TPUs, ragged_paged_attention, runs in neither of
# the two interpreters that JAX has for such kernels, so that nobody without a TPU can
# test what is built on it.
#
# Input: two sequences of 3 and 3 new tokens, 10 and 130 tokens long, 4 query heads and 2
# key heads of 128 numbers, float32, pages of 64; `ref_ragged_paged_attention` of the same
# package computes it, and the kernel compiles ahead of time for a v5e (seen with libtpu
# 0.0.42.1, not done here). Seen:
#   `pltpu.force_tpu_interpret_mode()`: AttributeError: 'ReshapeTransform' object has no
#     attribute 'indices' (the kernel reshapes the reference that it has fetched pages to);
#   `pallas_call(interpret=True)`: AttributeError: 'TypedInt' object has no attribute
#     'shape' (a masked store at a plain index).
# With the fetched pages read into an array, and masked stores written as whole ones, the
# first interpreter gives the reference's numbers. About a minute.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
"${PYTHON:-python3}" -m venv "$where/venv"
"$where/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2
cat > "$where/run.py" <<'PY'
import functools
import types

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel

rows, new, heads, kv, size, page, pages = 2, 3, 4, 2, 128, 64, 3
normal = lambda n, *shape: jax.random.normal(jax.random.key(n), shape)
given = (
  normal(0, rows * new, heads, size),
  normal(1, rows * pages, page, 2 * kv, size),
  jnp.array([10, 130], jnp.int32),
  jnp.arange(rows * pages, dtype=jnp.int32).reshape(rows, pages),
  new * jnp.arange(rows + 1, dtype=jnp.int32),
  jnp.full(1, rows, jnp.int32),
)
blocks = {"num_queries_per_block": 6, "num_kv_pages_per_block": 2}
want = kernel.ref_ragged_paged_attention(*given, sm_scale=0.1)


def told(name):
  try:
    kernel.ragged_paged_attention(*given, sm_scale=0.1, **blocks)
  except Exception as error:
    return f"{name}: {str(error).strip().splitlines()[-1]}"[:200], str(error)
  return f"{name}: runs", ""


with pltpu.force_tpu_interpret_mode():
  line, whole = told("force_tpu_interpret_mode")
seen = "'ReshapeTransform' object has no attribute 'indices'"
print("force_tpu_interpret_mode:", seen if seen in whole else line)
here = dict(vars(pallas))
plain = pallas.pallas_call
kernel.pl = types.SimpleNamespace(
  **here | {"pallas_call": functools.partial(plain, interpret=True)}
)
line, whole = told("interpret=True")
other = "'TypedInt' object has no attribute 'shape'"
print("interpret=True:", other if other in whole else line)
kernel.pl = pallas


class Held:
  def __init__(self, ref):
    self.ref = ref

  def reshape(self, *shape):
    return self.ref[...].reshape(*shape)


def store(ref, value, *, mask):
  ref[...] = jnp.where(mask, value, ref[...])


fetched = kernel.MultiPageAsyncCopyDescriptor
wait = fetched.wait
fetched.wait = lambda self: Held(wait(self))
pltpu.store = store
jax.clear_caches()
with pltpu.force_tpu_interpret_mode():
  found = kernel.ragged_paged_attention(*given, sm_scale=0.1, **blocks)
print("with both replaced, close to the reference:", bool(abs(found - want).max() < 1e-5))
PY
JAX_PLATFORMS=cpu "$where/venv/bin/python" "$where/run.py" 2> "$where/errors" | tee "$where/told" \
  || { tail -3 "$where/errors"; exit 1; }
grep -qx "force_tpu_interpret_mode: 'ReshapeTransform' object has no attribute 'indices'" "$where/told"
grep -qx "interpret=True: 'TypedInt' object has no attribute 'shape'" "$where/told"
grep -qx "with both replaced, close to the reference: True" "$where/told"
echo "as described"
