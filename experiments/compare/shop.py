"""Where learning is fast: six methods on generated shops, 3 seeds.

    python -m steppo_jax compare experiments/compare/shop.py --jobs 2

The ablation's four and two methods with groups, 36 updates of 128 episodes from
the warm start of `webshop_steppo.py`. 18 runs, no search: the rate is the
base's.
"""

import pathlib

import ablation
import household

from steppo_jax.compare.matrix import Matrix, World

_GROUPED = [m for m in household.MATRIX.methods if m.name in ("grpo", "gigpo")]

MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "webshop_steppo.py"),
  assignments=household.BUDGET,
  methods=(*ablation.MATRIX.methods, *_GROUPED),
  worlds=(World("shop"),),
  seeds=(0, 1, 2),
)
