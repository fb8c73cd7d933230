"""The table of algorithms and what it refuses."""

import dataclasses
import inspect

import pytest

from steppo_jax.algorithms import estimators, objective, options
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.ops import aggregation

# fmt: off
REQUIRED = {
  "steppo", "capo", "ppo", "turn_ppo", "grpo", "dr_grpo", "dapo", "rloo",
  "reinforce_pp", "reinforce_pp_baseline", "gspo", "gigpo", "hgpo", "gagpo",
  "sapo_segment", "serl", "stepopsd", "agentopsd", "vetta", "cispo", "gmpo",
  "soft", "sapo_rec", "actfocus_ppo", "actfocus_grpo",
}
# fmt: on


def test_the_table_holds_every_algorithm_of_the_sheet():
  assert set(algorithms_table.ALGORITHMS) >= REQUIRED


@pytest.mark.parametrize("name", algorithms_table.ALGORITHMS)
def test_a_row_names_what_exists_and_passes_its_own_checks(name):
  row = algorithms_table.get(name)
  estimator = getattr(estimators, row.estimator)
  constants = inspect.signature(estimator).parameters
  options = dict(row.options)
  wanted = [
    p.name for p in constants.values() if p.kind is p.KEYWORD_ONLY
  ]  # fmt: skip
  assert sorted(wanted) == sorted([*options, "discount", "lambda_"])
  assert hasattr(aggregation, row.aggregation)
  objective.check_names(row)
  assert row.evidence in ("code", "paper", "secondary", "reconstruction")
  assert row.source
  assert 0 <= row.discount <= 1
  assert hash(row) == hash(dataclasses.replace(row))
  algorithms_table.check_clip(row)


def test_the_constants_of_the_sheet():
  row = algorithms_table.get("steppo")
  assert (row.ratio, row.power, row.center) == ("step", 1.0, False)
  assert (row.clip_low, row.clip_high) == (3e-4, 4e-4)
  row = algorithms_table.get("capo")
  assert (row.ratio, row.power, row.center) == ("step", 0.5, True)
  assert (row.clip_low, row.clip_high) == (1e-3, 1e-3)
  row = algorithms_table.get("ppo")
  assert (row.clip_low, row.clip_high, row.dual_clip) == (0.2, 0.2, 3.0)
  row = algorithms_table.get("dapo")
  assert (row.clip_low, row.clip_high, row.kl_coef) == (0.2, 0.28, 0.0)
  row = algorithms_table.get("turn_ppo")
  assert (row.power, row.discount, row.lambda_) == (0.0, 0.99, 0.9)


def test_an_unknown_name_is_answered_with_the_nearest():
  with pytest.raises(ValueError, match="'stepo', did you mean 'steppo'"):
    algorithms_table.get("stepo")
  with pytest.raises(ValueError, match="known: steppo, capo"):
    algorithms_table.get("zzzzzz")


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("ppo", {"clip_low": 3e-4}, "clip_low=0.0003 does not fit a token ratio"),
    ("steppo", {"clip_high": 0.9}, "clip_high=0.9 does not fit a step ratio"),
    ("grpo", {"clip_low": 1.5}, "clip_low=1.5 lets the ratio fall below 0"),
    ("ppo", {"dual_clip": 0.5}, "dual_clip=0.5 must be above 1"),
    ("capo", {"clip_low": -0.1}, "clip_low=-0.1 does not fit"),
  ],
)
def test_a_clip_that_cannot_fit_its_ratio_is_refused(name, change, message):
  row = dataclasses.replace(algorithms_table.get(name), **change)
  with pytest.raises(ValueError, match=message):
    algorithms_table.check_clip(row)


def test_needs_that_a_run_cannot_meet_are_refused():
  everything = {
    "critic", "reference", "group", "anchor", "teacher", "entropy", "reasoning"
  }  # fmt: skip
  for row in algorithms_table.ALGORITHMS.values():
    algorithms_table.check_needs(row, everything)
  with pytest.raises(ValueError, match="needs anchor, reference, which"):
    algorithms_table.check_needs(algorithms_table.get("gigpo"), {"group"})
  with pytest.raises(ValueError, match="needs critic"):
    algorithms_table.check_needs(algorithms_table.get("ppo"), {"reference"})


@pytest.mark.parametrize(
  ("name", "option"),
  [
    ("gigpo", "group_size above 1"),
    ("serl", r"algorithm\.teacher"),
    ("grpo", r"algorithm\.kl_coef=0"),
  ],
)
def test_a_missing_need_comes_with_the_option_that_provides_it(name, option):
  with pytest.raises(ValueError, match=option):
    algorithms_table.check_needs(algorithms_table.get(name), set())


def test_a_row_reads_the_reference_for_its_loss_or_for_its_reward():
  assert algorithms_table.get("grpo").reads_reference
  assert algorithms_table.get("rloo").reads_reference
  assert not algorithms_table.get("dapo").reads_reference
  # A traced weight is not known to be 0.
  traced = dataclasses.replace(algorithms_table.get("dapo"), kl_coef=object())
  assert traced.reads_reference


def test_the_loss_is_averaged_over_tokens_steps_or_trajectories():
  for name, own in (("grpo", "token"), ("steppo", "step")):
    row = algorithms_table.get(name)
    assert algorithms_table.weighted(row, own) == row
  paper = algorithms_table.weighted(
    algorithms_table.get("steppo"), "trajectory"
  )
  assert paper.aggregation == "trajectory_step_mean"
  with pytest.raises(ValueError, match="'trajectroy', did you mean 'traj"):
    algorithms_table.weighted(row, "trajectroy")


def test_options_of_a_run_change_the_row():
  from steppo_jax.training import config

  made = config.AlgorithmConfig(
    name="serl", clip_low=0.3, loss_weighting="step", teacher="teacher.st"
  ).row()
  row = algorithms_table.get("serl")
  assert made == dataclasses.replace(
    row, clip_low=0.3, aggregation="step_mean_loss"
  )
  with pytest.raises(ValueError, match=r"algorithm\.teacher=x is not read by"):
    config.AlgorithmConfig(name="grpo", teacher="x").row()
  with pytest.raises(ValueError, match="unknown loss_weighting 'episode'"):
    config.AlgorithmConfig(name="grpo", loss_weighting="episode").row()


# Another value of each constant that a row may have.
OTHERS = {
  "singleton": "raw", "scale": "none", "base_group": True, "history": 3,
  "surrogate": "clip", "ratio": "step", "aggregation": "token_mean",
  "tau": (2.0, 3.0), "center": True, "dual_clip": 5.0, "mix_updates": 7,
  "clip_low": 0.25, "clip_high": 0.25, "rollout_correction": "icepop",
  "rollout_low": 0.25, "rollout_high": 3.0, "max_staleness": 3,
  "overlong_length": 30, "overlong_cache": 10, "span": "answer",
  "equal_step_mean_abs": True, "limit": 3.0, "divide": False, "teacher_lag": 4,
}  # fmt: skip
# What some are not read without.
BESIDE = {
  "focus_beta": {"focus_alpha": 0.5}, "kl_target": {"kl_coef": 0.5},
  "rollout_low": {"rollout_correction": "icepop"},
  "rollout_high": {"rollout_correction": "icepop"},
  "overlong_length": {"overlong_cache": 10},
  "overlong_cache": {"overlong_length": 30},
}  # fmt: skip
NO_CONSTANTS = {"estimator", "source", "evidence", "options", "critic", "needs"}


@pytest.mark.parametrize("name", algorithms_table.ALGORITHMS)
def test_a_run_can_set_every_constant_of_a_row(name):
  row = algorithms_table.get(name)
  fields = {f.name for f in dataclasses.fields(row)} - NO_CONSTANTS
  if row.segment_share is None:
    fields -= {"segment_share"}
  if "mix" not in dict(row.options):
    fields -= {"mix_updates"}
  # A test that a clip fits its ratio is elsewhere.
  settable = {f.name for f in dataclasses.fields(options.AlgorithmConfig)}
  for constant in sorted(fields) + [key for key, _ in row.options]:
    assert constant in settable, f"algorithm.{constant} of {name}"
    value = OTHERS.get(constant, 0.125)
    given = BESIDE.get(constant, {}) | {constant: value}
    made = options.AlgorithmConfig(name=name, **given).row()
    got = dict(made.options).get(constant, getattr(made, constant, None))
    assert got == value


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("grpo", {"omega": 1.0}, r"algorithm\.omega=1.0 is not read by grpo"),
    ("steppo", {"eps": 1.0}, "estimator has no constants"),
    ("steppo", {"segment_share": 0.1}, "whose steps are not cut"),
    ("grpo", {"surrogate": "log_clip"}, r"needs algorithm\.ratio=step"),
    ("dr_grpo", {"constant": 0.0}, r"algorithm\.constant=0 must be above 0"),
    ("grpo", {"eps": -1.0}, r"algorithm\.eps=-1 must be at least 0"),
    ("soft", {"tau": (1.0, 0.0)}, "must be above 0"),
    ("gspo", {"aggregation": "token_mean", "loss_weighting": "step"},
     "say the same"),
  ],
)  # fmt: skip
def test_constants_that_a_row_does_not_have_are_refused(name, change, message):
  with pytest.raises(ValueError, match=message):
    options.AlgorithmConfig(name=name, **change).row()


def test_constants_are_set_on_the_command_line():
  from steppo_jax.training import config

  made = config.override(
    config.RunConfig(weights="w"),
    ["algorithm.name=soft", "algorithm.tau=2,3", "algorithm.singleton=raw",
     "algorithm.value_clip=inf", "algorithm.center=True"],
    "train",
  ).algorithm.row()  # fmt: skip
  assert made.tau == (2.0, 3.0)
  assert dict(made.options)["singleton"] == "raw"
  assert made.value_clip == float("inf")
  assert made.center
