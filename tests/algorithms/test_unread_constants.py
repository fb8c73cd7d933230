"""A constant that a row does not read, or cannot mean, is refused."""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from steppo_jax.algorithms import checks, estimators, objective, options
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.training import config

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
  """Fields of a row, each with what the row is after a change, or None."""
  own = algorithms_table.get(name)
  has = {f.name for f in dataclasses.fields(own)} | {*own.constants}
  for field in sorted(has & set(CHANGES)):
    given = {field: CHANGES[field]}
    try:
      row = options.AlgorithmConfig(name=name, **given).row()
    except ValueError as error:
      # A clip does not fit another ratio.
      if "does not fit" not in str(error):
        said = f"algorithm.{field}={given[field]} is not read"
        yield field, None if said in str(error) else error
    else:
      yield field, row


@pytest.mark.parametrize("name", UNREAD)
def test_rows_refuse_what_they_do_not_read(name):
  found = dict(changed(name))
  assert not [x for x in found.values() if isinstance(x, ValueError)]
  assert {field for field, row in found.items() if row is None} == UNREAD[name]


@pytest.mark.slow  # Two seconds of tracing a row on a quiet core.
@pytest.mark.parametrize("name", ROWS)
def test_what_a_row_accepts_changes_what_it_computes(name):
  own = algorithms_table.get(name)
  for field, row in changed(name):
    if row not in (None, own):
      assert program(row) != program(own), field


@pytest.mark.parametrize(
  ("name", "given", "where"),
  [
    ("grpo", {"power": 0.5}, "it is where algorithm.ratio=step"),
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
def test_the_refusal_says_where_the_constant_would_be_read(name, given, where):
  last = list(given)[-1]
  message = f"algorithm.{last}={given[last]} is not read by {name}"
  with pytest.raises(ValueError, match=message) as found:
    options.AlgorithmConfig(name=name, **given).row()
  assert where in str(found.value)


def test_the_value_of_the_row_itself_is_not_refused():
  for name in ROWS:
    row = algorithms_table.get(name)
    same = {
      f.name: getattr(row, f.name)
      for f in dataclasses.fields(row)
      if f.name in CHANGES and getattr(row, f.name) is not None
    }
    own = options.AlgorithmConfig(name=name, **same, **row.constants)
    assert own.row() == row


def test_another_row_on_the_command_line_leaves_constants_behind():
  base = config.RunConfig(
    weights="w",
    algorithm=options.AlgorithmConfig(
      "steppo", lambda_=0.9, clip_low=0.1, clip_high=0.1, entropy_coef=0.01
    ),
  )
  parse = lambda *given: config.override(base, given, "train").algorithm
  # λ was StepPO's; clip and entropy bonus are read by GRPO too.
  assert parse("algorithm.name=grpo") == options.AlgorithmConfig(
    "grpo", clip_low=0.1, clip_high=0.1, entropy_coef=0.01
  )
  assert parse("algorithm.name=ppo").lambda_ == 0.9
  assert parse("algorithm.name=soft").clip_low is None
  # What is assigned is not dropped, be it the experiment's own value.
  for given in ("algorithm.lambda_=0.8", "algorithm.lambda_=0.9"):
    with pytest.raises(ValueError, match=r"lambda_=0\.\d is not read by grpo"):
      parse("algorithm.name=grpo", given).row()


def test_options_of_an_older_version_are_cleared_of_what_was_never_read():
  old = options.AlgorithmConfig(
    "grpo", discount=0.9, tau=(2.0, 3.0), teacher_lag=10, omega=2.0,
    teacher="peer", mix_updates=5, segment_share=0.5, clip_high=0.3,
  )  # fmt: skip
  assert old.without_unread() == options.AlgorithmConfig("grpo", clip_high=0.3)


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
    ("serl", {"high": 0.9}),
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
