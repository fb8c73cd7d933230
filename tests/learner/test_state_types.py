"""A state has the same types after an update, so that a scan can carry it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_updates
from marks import some

import steppo_jax as sj

MODES = {
  "plain": {},
  "kl_target": {"kl_coef": 0.1, "kl_target": 0.05},
  "corrected": {"rollout_correction": "tis_step", "max_staleness": 2},
  "lagging": {"teacher_lag": 3},
  "bounded": {
    "sequence_mask": 0.3, "advantage_clip": 0.5, "overlong_length": 3,
    "overlong_cache": 2,
  },
  "focus": {"focus_alpha": 0.1, "focus_beta": 0.5},
}  # fmt: skip
RATES = (
  "learning_rate", "critic_learning_rate", "final_learning_rate",
  "max_grad_norm", "weight_decay",
)  # fmt: skip


def _wide(tree):
  """Every number that is no whole one as a float64 of JAX's."""
  of = lambda x: jnp.float64(x) if isinstance(x, float) else x
  return jax.tree.map(of, tree)


def _check(name, mode, dtype, wide):
  row = dataclasses.replace(sj.ALGORITHMS[name], **MODES[mode])
  config = toy_updates.CONFIG
  if wide:
    fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    del fields["segment_share"]  # Shapes depend on it.
    row = dataclasses.replace(row, **_wide(fields))
    rates = {name: jnp.float64(getattr(config, name)) for name in RATES}
    config = dataclasses.replace(config, **rates)
  parts = sj.make_parts(
    sj.Model(
      toy_updates.log_probs, toy_updates.values,
      toy_updates.log_probs_and_energies,
    ),
    row, config,
  )  # fmt: skip
  start = toy_updates.start(parts, dtype)
  batch = toy_updates.batch(reasoning=True)
  after = jax.eval_shape(
    lambda state: sj.update(
      parts, state, toy_updates.reference(dtype), batch,
      toy_updates.parameters(7, dtype) if "teacher" in row.needs else None,
    )[0],
    start,
  )  # fmt: skip
  chex.assert_trees_all_equal_shapes_and_dtypes(after, start)


@pytest.mark.parametrize("wide", some(False, slow=[True]))
@pytest.mark.parametrize("dtype", some(np.float64, slow=[np.float32]))
@pytest.mark.parametrize(
  ("name", "mode"),
  some(
    ("dr_grpo", "kl_target"),
    slow=[
      *(("grpo", mode) for mode in MODES),
      *((name, "plain") for name in sj.ALGORITHMS),
      ("vetta", "kl_target"),
      ("ppo", "corrected"),
    ],
  ),
)
def test_a_state_keeps_its_types(name, mode, dtype, wide):
  with toy_updates.x64(), jax.numpy_dtype_promotion("strict"):
    _check(name, mode, dtype, wide)
