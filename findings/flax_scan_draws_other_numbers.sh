#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2: `flax.linen.scan(check_constancy_invariants=False)`
# initialises other parameters than `True`, the default, from the same key.
#
# The documentation of the argument speaks of a check and of the time that tracing
# takes. Seen: the shapes are equal, and no kernel is; biases are 0 either way.
# Whoever switches it off to trace faster gets another start from every seed, so that
# runs are not comparable with those before. Applying a module is not concerned: the
# same parameters give the same output, to the bit.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
"${PYTHON:-python3}" -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$where/see.py" <<'PY'
import jax
import jax.numpy as jnp
from flax import linen as nn


class Stack(nn.Module):
  check: bool

  @nn.compact
  def __call__(self, x):
    body = lambda layer, carry, _: (layer(carry), None)
    scan = nn.scan(
      body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2,
      check_constancy_invariants=self.check,
    )
    return scan(nn.Dense(4, name="layers"), x, None)[0]


x = jnp.ones((1, 4))
made = [Stack(check).init(jax.random.key(0), x) for check in (True, False)]
leaves = [jax.tree.leaves_with_path(p) for p in made]
kernels = [dict((str(k), v) for k, v in leaf) for leaf in leaves]
assert kernels[0].keys() == kernels[1].keys()
equal = {k: bool((kernels[0][k] == kernels[1][k]).all()) for k in kernels[0]}
print("equal from one key:", equal)
outs = [Stack(check).apply(made[0], x) for check in (True, False)]
print("equal output of equal parameters:", bool((outs[0] == outs[1]).all()))
drawn = [k for k in equal if "kernel" in k]
assert drawn and not any(equal[k] for k in drawn)
assert (outs[0] == outs[1]).all()
PY
"$where/venv/bin/python" "$where/see.py"
echo "as described"
