"""A constant that a row does not read is told, one it cannot mean refused."""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import small_runs
import worlds

from steppo_jax.algorithms import checks, estimators, objective, options
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import learner
from steppo_jax.training import run

ROWS = list(algorithms_table.ALGORITHMS)
TOKENS, TABLE, VALUE = reference.device_records(reference.ragged(8))
TOKENS = TOKENS.replace(reasoning=jnp.zeros(TOKENS.step_ids.shape, bool))
FLAT = jnp.full(TOKENS.step_ids.shape, 0.5)
EXTRAS = estimators.Extras(teacher_gap=FLAT, reference_gap=FLAT)
# Another value of each constant that estimator and objective may read.
CHANGES = {
  "discount": 0.5, "lambda_": 0.5, "power": 0.25, "center": True,
  "surrogate": "cispo", "ratio": "step", "clip_low": 0.15, "clip_high": 0.15,
  "dual_clip": 7.0, "tau": (2.0, 3.0), "constant": 77.0, "value_clip": 0.7,
  "aggregation": "trajectory_step_mean", "kl_coef": 0.3, "entropy_coef": 0.3,
  "sequence_mask": 0.4, "eps": 0.2, "singleton": "raw", "omega": 0.6,
  "alpha": 3.0, "history": 3, "scale": "none", "base_group": True,
  "kl_reward": 0.4, "token_discount": 0.6, "token_lambda": 0.6, "low": 0.7,
  "high": 1.7, "mix": 0.7, "decay": 0.6, "band": 0.4, "limit": 3.0,
  "divide": False, "span": "answer", "equal_step_mean_abs": True,
}  # fmt: skip
# What each row has and does not read, beside what the others say here.
_CLIP = {"tau", "constant"}
_TOKEN = {"power", "center"}
_GROUP = {"discount", "lambda_", "value_clip"}
UNREAD = {
  "steppo": _CLIP | {"center"},
  "capo": _CLIP,
  "grpo": _CLIP | _TOKEN | _GROUP,
  "dr_grpo": {"tau"} | _TOKEN | _GROUP,
  "gigpo": _CLIP | _TOKEN | {"lambda_", "value_clip"},
  "stepopsd": _CLIP | _TOKEN | _GROUP | {"limit"},
  "soft": {"constant", "clip_low", "clip_high", "dual_clip"} | _TOKEN | _GROUP,
  "cispo": _CLIP | {"dual_clip"} | _TOKEN | _GROUP,
  "gmpo": _CLIP | {"center", "dual_clip"} | _GROUP,
}


@functools.cache
def program(row):
  """What estimator and objective compute of a row, as text."""

  def losses(tokens, table, value, logp, entropy):
    value = (value, value) if row.critic == "both" else value
    made = objective.advantages(row, tokens, table, value, EXTRAS)
    policy, _ = objective.policy_loss(
      row, made.advantage, logp, entropy, tokens, table, mu=jnp.mean(logp),
      ref_logp_t=logp,
    )  # fmt: skip
    if row.critic is None:
      return made, policy
    one = (lambda x: x[0]) if row.critic == "both" else (lambda x: x)
    clock = "step" if row.critic == "both" else row.critic
    critic, _ = objective.value_loss_terms(
      dataclasses.replace(row, critic=clock),
      one(made.target), one(value), one(value), tokens, table,
      boundary_local=table.boundary, here=table.live,
      value_clip=row.value_clip,
    )  # fmt: skip
    return made, policy, critic

  traced = jax.make_jaxpr(losses)(TOKENS, TABLE, VALUE, -FLAT, FLAT)
  return str(traced), [np.asarray(x).tolist() for x in traced.consts]


def changed(name):
  """Fields of a row, each with its options after a change."""
  own = algorithms_table.get(name)
  has = {f.name for f in dataclasses.fields(own)} | {*own.constants}
  for field in sorted(has & set(CHANGES)):
    made = options.AlgorithmConfig(name=name, **{field: CHANGES[field]})
    try:
      made.row()
    except ValueError as error:
      # A clip does not fit another ratio.
      if "does not fit" not in str(error):
        raise
    else:
      yield field, made


@pytest.mark.parametrize("name", UNREAD)
def test_rows_tell_what_they_do_not_read(name):
  found = {field for field, made in changed(name) if made.unread()}
  assert found == UNREAD[name]


@pytest.mark.slow  # Two seconds of tracing a row on a quiet core.
@pytest.mark.parametrize("name", ROWS)
def test_what_a_row_reads_changes_what_it_computes(name):
  own = algorithms_table.get(name)
  for field, made in changed(name):
    if not made.unread() and made.row() != own:
      assert program(made.row()) != program(own), field


@pytest.mark.parametrize(
  ("name", "given", "where"),
  [
    ("grpo", {"power": 0.5}, "algorithm.ratio=step"),
    ("grpo", {"ratio": "step", "clip_low": 1e-3, "clip_high": 1e-3,
              "center": True}, "another algorithm.power than 1"),
    ("grpo", {"value_clip": 0.5}, "the row has a critic"),
    ("grpo", {"teacher_lag": 10}, "the row needs a teacher"),
    ("grpo", {"rollout_high": 3.0}, "algorithm.rollout_correction is set"),
    ("grpo", {"rollout_correction": "tis_token", "rollout_low": 0.1},
     "is icepop or geometric"),
    ("stepopsd", {"limit": 3.0}, "algorithm.equal_step_mean_abs=True"),
    ("stepopsd", {"teacher": "x.safetensors", "teacher_lag": 4},
     "algorithm.teacher is peer or hindsight"),
    ("sapo_rec", {"divide": False, "eps": 0.5}, "algorithm.divide=True"),
    ("hgpo", {"scale": "none", "eps": 0.5}, "algorithm.scale=deviation"),
    ("hgpo", {"history": 0, "alpha": 2.0}, "algorithm.history above 0"),
  ],
)  # fmt: skip
def test_it_is_said_where_the_constant_would_be_read(name, given, where):
  ((told, said),) = options.AlgorithmConfig(name=name, **given).unread().items()
  assert told == list(given)[-1]
  assert where in said


def test_the_value_of_the_row_itself_is_not_told():
  for name in ROWS:
    row = algorithms_table.get(name)
    same = {
      f.name: getattr(row, f.name)
      for f in dataclasses.fields(row)
      if f.name in CHANGES and getattr(row, f.name) is not None
    }
    own = options.AlgorithmConfig(name=name, **same, **row.constants)
    assert own.row() == row
    assert not own.unread()


def test_a_run_says_what_has_no_effect(tmp_path, caplog):
  made = small_runs.small_config(tmp_path)
  made = dataclasses.replace(
    made,
    group_size=2,
    algorithm=options.AlgorithmConfig("grpo", lambda_=0.9),
  )
  run.Learning(made)
  assert "algorithm.lambda_=0.9 has no effect on grpo" in caplog.text


def test_a_second_policy_is_kept_only_where_a_teacher_is_read():
  row = options.AlgorithmConfig("grpo", teacher_lag=10).row()
  spec = learner.make_parts(worlds.model(), row)
  assert learner.init(spec, worlds.policy()).teacher is None


@pytest.mark.parametrize(
  ("name", "given"),
  [
    ("steppo", {"lambda_": 95.0}),
    ("steppo", {"lambda_": -0.1}),
    ("steppo", {"discount": 1.5}),
    ("vetta", {"token_discount": 1.01}),
    ("vetta", {"token_lambda": 1.01}),
    ("agentopsd", {"decay": 3.0}),
    ("agentopsd", {"band": 1.5}),
    ("serl", {"mix": 8.0}),
    ("serl", {"low": 1.3}),
    ("serl", {"high": -0.1}),
    ("stepopsd", {"equal_step_mean_abs": True, "limit": 0.5}),
    ("stepopsd", {"teacher_lag": -3}),
    ("gigpo", {"omega": -1.0}),
    ("hgpo", {"history": -1}),
    ("rloo", {"kl_reward": -0.1}),
    ("grpo", {"entropy_coef": -1.0}),
    ("grpo", {"kl_coef": math.inf}),
    ("grpo", {"dual_clip": 1.0}),
    ("steppo", {"power": -1.0}),
    ("sapo_segment", {"segment_share": 1.5}),
    ("dr_grpo", {"constant": math.inf}),
    ("soft", {"tau": (1.0, math.nan)}),
  ],
)
def test_constants_out_of_their_range_are_refused(name, given):
  last = list(given)[-1]
  with pytest.raises(ValueError, match=rf"algorithm\.{last}=.* must be "):
    options.AlgorithmConfig(name=name, **given).row()


def test_every_number_has_a_range_which_holds_no_nan():
  hints = typing.get_type_hints(options.AlgorithmConfig)
  numbers = {
    name
    for name, kind in hints.items()
    if set(typing.get_args(kind)) & {float, int, tuple[float, float]}
  }
  # The widths of the clip and the band of the correction: `row` has them.
  elsewhere = {"clip_low", "clip_high", "rollout_low", "rollout_high"}
  elsewhere |= {"overlong_length", "overlong_cache"}
  ranges = {name: holds for _, holds, names in checks.RANGES for name in names}
  assert numbers == ranges.keys() | elsewhere
  assert not any(holds(math.nan) for holds in ranges.values())
  for name in elsewhere:
    given = {name: math.nan, "rollout_correction": "icepop"}
    with pytest.raises(ValueError, match=name):
      options.AlgorithmConfig(name="grpo", **given).row()


@pytest.mark.parametrize("given", [
  {"rollout_correction": "tis_token", "rollout_high": math.inf},
  {"rollout_correction": "icepop", "rollout_low": 0.0,
   "rollout_high": math.inf},
  {"dual_clip": math.inf},
  {"overlong_length": 8, "overlong_cache": 0},
])  # fmt: skip
def test_bounds_may_be_infinite_or_absent(given):
  row = options.AlgorithmConfig(name="grpo", **given).row()
  assert {name: getattr(row, name) for name in given} == given
