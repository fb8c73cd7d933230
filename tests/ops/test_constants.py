"""Constants of any kind, under strict promotion and with 64 bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_updates
from marks import some
from transform_cases import (
  ACTION,
  COUNT,
  GROUP,
  IDS,
  INDEX,
  LAST,
  LIVE,
  SUCCESS,
  THOUGHT,
  X_K,
  X_T,
)  # fmt: skip

from steppo_jax.algorithms import estimators, objective
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.ops import (
  aggregation,
  groups,
  logprobs,
  losses,
  ratios,
  returns,
  shaping,
)

KINDS = {
  "python": float, "numpy": np.float64, "narrow": jnp.float32,
  "wide": jnp.float64,
}  # fmt: skip
# Function of constants, and the constants; each in turn is of every kind.
_gap = functools.partial(shaping.reweight_band, X_T, X_T, ACTION)
_sigmoid = functools.partial(shaping.reweight_sigmoid, X_T, X_T, ACTION)
BAND = {"low": 0.8, "high": 1.2, "mix": 0.5}
CLIPS = {"clip_low": 0.2, "clip_high": 0.3}
WEIGHT = {"num_steps": 9, "kind": "icepop"}
CASES = {
  "reweight_band": (_gap, BAND),
  "reweight_sigmoid": (_sigmoid, BAND),
  "token_weight": (
    functools.partial(shaping.token_weight, X_T, X_T, IDS, num_steps=9),
    {"mix": 0.5},
  ),
  "belief_filter": (
    functools.partial(shaping.belief_filter, X_K, SUCCESS, X_K, LAST),
    {"mix": 0.5, "band": 0.2, "decay": 0.9},
  ),
  "focus_weight": (
    functools.partial(shaping.focus_weight, X_T, THOUGHT, ACTION & ~THOUGHT),
    {"alpha": 0.1, "beta": 0.5},
  ),
  "equal_step_scale": (
    functools.partial(shaping.equal_step_scale, X_T, IDS, GROUP, num_steps=9),
    {"limit": 2.0},
  ),
  "annealed": (
    lambda mix: shaping.annealed(mix, np.int32(3), updates=50), {"mix": 0.5},
  ),
  "overlong_penalty": (
    functools.partial(shaping.overlong_penalty, COUNT.astype(np.int32)),
    {"max_length": 8.0, "cache": 4.0},
  ),
  "discounted_returns": (
    functools.partial(returns.discounted_returns, X_K, LAST, X_K),
    {"discount": 0.9},
  ),
  "step_gae": (
    functools.partial(returns.step_gae, X_K, X_K, LAST, X_K),
    {"discount": 0.9, "lambda_": 0.8},
  ),
  "token_gae": (
    functools.partial(returns.token_gae, X_K, X_T, IDS, LAST, X_K),
    {"discount": 0.9, "lambda_": 0.8},
  ),
  "turn_and_token_gae": (
    functools.partial(
      returns.turn_and_token_gae, X_K, X_K, X_T, IDS, LAST, X_K, X_K
    ),
    {
      "alpha": 2.0, "turn_discount": 0.9, "turn_lambda": 0.8,
      "token_discount": 0.9, "token_lambda": 0.7,
    },
  ),
  "group_zscore": (
    functools.partial(
      groups.group_zscore, X_K, GROUP, LIVE, num_groups=9, singleton="raw"
    ),
    {"eps": 1e-6},
  ),
  "population_zscore": (
    functools.partial(
      groups.population_zscore, X_K, GROUP, LIVE, num_groups=9
    ),
    {"eps": 1e-6},
  ),
  "group_by_index": (
    functools.partial(
      groups.group_by_index, X_K, GROUP, INDEX, LIVE, num_groups=9,
      num_indices=2, divide=True,
    ),
    {"eps": 1e-6},
  ),
  "token_sum_over_constant": (
    functools.partial(
      aggregation.token_sum_over_constant, X_T, IDS, COUNT, GROUP
    ),
    {"constant": 9.0},
  ),
  "pooled_log_ratio": (
    functools.partial(
      ratios.pooled_log_ratio, X_T, IDS, num_steps=9, center=True
    ),
    {"power": 0.5},
  ),
  "pooled_log_ratio_centered": (
    lambda mu, power: ratios.pooled_log_ratio_centered(
      X_T, IDS, mu, num_steps=9, power=power
    ),
    {"mu": 0.1, "power": 0.5},
  ),
  "rollout_weight": (
    functools.partial(ratios.rollout_weight, X_T, IDS, **WEIGHT),
    {"low": 0.5, "high": 2.0},
  ),
  "clipped_surrogate": (
    functools.partial(losses.clipped_surrogate, jnp.exp(X_T), X_T),
    CLIPS | {"dual_clip": 3.0},
  ),
  "cispo": (functools.partial(losses.cispo, X_T, jnp.exp(X_T), X_T), CLIPS),
  "soft_gate": (
    functools.partial(losses.soft_gate, jnp.exp(X_T), X_T), {"tau": 1.1}
  ),
  "log_clip": (functools.partial(losses.log_clip, X_T, X_T), CLIPS),
  "value_loss": (
    functools.partial(losses.value_loss, X_T, X_T, -X_T), {"value_clip": 0.5}
  ),
  "next_token_logprobs": (
    lambda temperature: logprobs.next_token_logprobs(
      np.ones((*IDS.shape, 4), np.float32), np.ones((8, 4), np.float32),
      np.zeros_like(IDS), np.zeros_like(IDS), ACTION, chunk=64,
      temperature=temperature, softcap=None,
    ),
    {"temperature": 0.9},
  ),
}  # fmt: skip


SLOW = ("token_gae", "turn_and_token_gae")


def _call_with(function, constants):
  """Calls it once for each constant and kind, and with traced ones."""
  for name, value in constants.items():
    for kind in KINDS.values():
      given = constants | {name: kind(value)}
      jax.eval_shape(lambda given=given: function(**given))
    given = jax.tree.map(jnp.float64, constants)
    jax.eval_shape(lambda given: function(**given), given)


@pytest.mark.parametrize(
  "name", some(*(name for name in CASES if name not in SLOW), slow=SLOW)
)
def test_a_constant_may_be_of_any_kind(name):
  function, constants = CASES[name]
  with toy_updates.x64(), jax.numpy_dtype_promotion("strict"):
    _call_with(function, constants)


@functools.cache
def _flat():
  packed = toy_updates.packed()
  flat = lambda x: x.reshape(-1, x.shape[-1])
  return jax.tree.map(flat, packed.tokens), packed.table


@pytest.mark.parametrize(
  "name",
  some(
    "gigpo",
    slow=["hgpo", "rloo", "serl", "stepopsd", "agentopsd", "vetta"],
  ),
)
def test_an_option_of_an_estimator_may_be_of_any_kind(name):
  row = algorithms_table.get(name)
  batch, table = _flat()
  one = np.ones(batch.tokens.shape, np.float32)
  options = {"discount": row.discount, "lambda_": row.lambda_} | {
    k: v for k, v in row.options if isinstance(v, float)
  }
  fixed = {k: v for k, v in row.options if k not in options}

  def run(**options):
    return getattr(estimators, row.estimator)(
      batch, table, one, estimators.Extras(one, one), **options, **fixed
    )

  with toy_updates.x64(), jax.numpy_dtype_promotion("strict"):
    _call_with(run, options)


@pytest.mark.slow
def test_a_number_of_a_loss_may_be_of_any_kind():
  batch, table = _flat()
  logp = np.full(batch.tokens.shape, -1.0, np.float32)
  advantage = np.ones(table.live.shape, np.float32)
  numbers = {
    "kl_coef": 0.1, "entropy_coef": 0.1, "sequence_mask": 0.3, "power": 0.5,
    "clip_low": 0.2, "dual_clip": 3.0, "constant": 9.0,
  }  # fmt: skip

  def run(**numbers):
    row = algorithms_table.Algorithm(
      "grpo", "here", "code", ratio="step",
      aggregation="token_sum_over_constant", **numbers,
    )  # fmt: skip
    return objective.policy_loss(
      row, advantage, logp, -logp, batch, table, mu=None, ref_logp_t=logp
    )

  with toy_updates.x64(), jax.numpy_dtype_promotion("strict"):
    _call_with(run, numbers)
