"""The table of algorithms: one row each, in data.

A row names functions instead of holding them, so that the table can be read,
printed and checked without loading JAX. `estimators` and `objective` look the
names up.
"""

import dataclasses
import difflib
import numbers
from collections.abc import Mapping
from dataclasses import replace as _replace
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """What makes an algorithm. Change a constant with `dataclasses.replace`.

  Within a traced function its numbers may be traced scalars, except
  `segment_share` and whole numbers, on which shapes depend.

  Attributes:
    estimator: Function of `estimators` that assigns credit.
    options: Constants of that estimator, as (name, value) pairs.
    discount: γ per unit of the estimator's clock.
    lambda_: λ per unit of the estimator's clock.
    critic: Clock of the value targets; "both" is a critic with a head for
      each; None without a critic.
    needs: What else the run has to provide, of "group", "anchor", "teacher",
      "entropy" and "reference".
    ratio: Grain of the policy ratio.
    power: Exponent of 1 / L when token log-ratios are pooled over a step: 0
      product, 0.5 square root, 1 geometric mean.
    center: True pools around the mean log-ratio of the mini-batch.
    surrogate: How ratio and advantage make a loss: "clip" (PPO), "cispo",
      "soft" (smooth gate) or "log_clip" (tokens clipped, then pooled).
    clip_low: Distance of the clip below 1; for "log_clip" below 0.
    clip_high: Distance of the clip above 1; for "log_clip" above 0.
    dual_clip: Bound c on the ratio where the advantage is negative, or None.
    tau: Sharpness of the smooth gate for positive and negative advantages.
    aggregation: Function of `ops.aggregation` that averages the loss.
    constant: Divisor of "token_sum_over_constant", in tokens.
    segment_share: Share of the action tokens, by entropy, that end a segment:
      steps are cut into segments first (`algorithms.estimators.resegment`).
      None: they are not.
    mix_updates: Updates over which the option `mix` falls to 0 in a straight
      line (`learner.credit.annealed`); 0 leaves it as it is.
    teacher_lag: Updates after which a teacher that is the policy itself becomes
      the policy of the time; 0 is the policy before each update.
    focus_alpha: Weight of reasoning tokens in the loss, beside those that
      `ops.shaping.focus_weight` gives to action tokens; None weighs all tokens
      alike.
    focus_beta: Largest extra weight of an action token there.
    rollout_correction: "tis_token", "tis_step", "icepop" or "geometric" takes
      the policy before the update for the centre of the clip, and weighs each
      token by how likely that policy finds it beside the one that sampled; see
      `ops.ratios.rollout_weight`. None: the policy that sampled is the centre.
    rollout_low: Lower end of the band of those weights, of a token's ratio for
      "icepop" and of a step's geometric mean for "geometric", where 0.5 hardly
      ever binds; the other kinds do not read it.
    rollout_high: Cap, or upper end of the band; inf for none.
    max_staleness: Steps that were sampled more updates ago are left out of the
      policy's loss; None leaves out none.
    sequence_mask: Steps of negative advantage are left out of the surrogate
      once the policy has gone this far from them, in nats a token.
    advantage_clip: Advantages are held within this distance of 0.
    overlong_length: Tokens of a response at which the penalty on long ones is
      1; see `ops.shaping.overlong_penalty`.
    overlong_cache: Tokens before that at which it starts; None for none.
    kl_coef: Weight of the k3 estimate of the KL to the reference policy.
    kl_target: The weight is multiplied after each update so that the KL comes
      to this many nats a token; None keeps it.
    entropy_coef: Weight of the entropy bonus.
    value_clip: Range of the critic's clip, or None.
    source: Where it is published.
    evidence: Where we read it: public code, the paper, a secondary source, or
      our own reconstruction.
  """

  estimator: str
  source: str
  evidence: Literal["code", "paper", "secondary", "reconstruction"]
  options: tuple[tuple[str, Any], ...] = ()
  discount: float = 1.0
  lambda_: float = 1.0
  critic: Literal["step", "token", "both"] | None = None
  needs: tuple[str, ...] = ()
  ratio: Literal["token", "step"] = "token"
  power: float = 1.0
  center: bool = False
  surrogate: Literal["clip", "cispo", "soft", "log_clip"] = "clip"
  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float | None = None
  tau: tuple[float, float] = (1.0, 1.05)
  aggregation: Literal[
    "token_mean",
    "step_mean_loss",
    "trajectory_step_mean",
    "trajectory_token_mean",
    "token_sum_over_constant",
  ] = "token_mean"
  constant: float = 1024.0
  segment_share: float | None = None
  mix_updates: int = 0
  teacher_lag: int = 0
  focus_alpha: float | None = None
  focus_beta: float = 0.0
  rollout_correction: (
    Literal["tis_token", "tis_step", "icepop", "geometric"] | None
  ) = None
  rollout_low: float = 0.5
  rollout_high: float = 2.0
  max_staleness: int | None = None
  sequence_mask: float | None = None
  advantage_clip: float | None = None
  overlong_length: int | None = None
  overlong_cache: int | None = None
  kl_coef: float = 0.0
  kl_target: float | None = None
  entropy_coef: float = 0.0
  value_clip: float | None = None

  @property
  def constants(self) -> dict[str, Any]:
    """The estimator's constants by name."""
    return dict(self.options)

  @property
  def reads_reference(self) -> bool:
    """Whether an update evaluates the reference policy."""
    known = isinstance(self.kl_coef, numbers.Real)
    if "reference" in self.needs or self.focus_alpha is not None:
      return True
    return not known or self.kl_coef != 0

  @property
  def wants(self) -> set[str]:
    """All that a run has to provide: `needs`, and what other fields imply."""
    wants = set(self.needs)
    wants |= {"critic"} if self.critic else set()
    wants |= {"reference"} if self.reads_reference else set()
    told = self.focus_alpha is not None
    told |= dict(self.options).get("span", "step") != "step"
    return wants | ({"reasoning"} if told else set())


# Weightings of the loss by name: what counts the same, and the function of
# `ops.aggregation` that makes it so.
LOSS_WEIGHTINGS = {
  "token": "token_mean",
  "step": "step_mean_loss",
  "trajectory": "trajectory_step_mean",
}


def _constants(**values: Any) -> tuple[tuple[str, Any], ...]:
  return tuple(values.items())


_ZSCORE = {"eps": 1e-6, "singleton": "zero"}
_GRPO = Algorithm(
  "grpo", "arXiv:2402.03300", "code", _constants(**_ZSCORE), needs=("group",),
  kl_coef=0.001,
)  # fmt: skip
_TAUGHT = ("group", "teacher")
_BAND = {**_ZSCORE, "low": 0.8, "high": 1.2}

ALGORITHMS: dict[str, Algorithm] = {
  "steppo": Algorithm(
    "step_gae", "arXiv:2604.18401v4", "paper", critic="step", ratio="step",
    clip_low=3e-4, clip_high=4e-4, aggregation="step_mean_loss",
    discount=0.99, kl_coef=0.001, value_clip=0.5),
  "capo": Algorithm(
    "step_gae", "arXiv:2604.18401v5", "secondary", critic="step", ratio="step",
    power=0.5, center=True, clip_low=1e-3, clip_high=1e-3, discount=0.99,
    aggregation="step_mean_loss", kl_coef=0.001, value_clip=0.5),
  "ppo": Algorithm(
    "token_gae", "arXiv:1707.06347", "code", critic="token", dual_clip=3.0,
    kl_coef=0.001, value_clip=0.5),
  "turn_ppo": Algorithm(
    "step_gae", "baselines of StepPO", "code", critic="step", ratio="step",
    power=0.0, discount=0.99, lambda_=0.9, aggregation="step_mean_loss",
    value_clip=0.5),
  "grpo": _GRPO,
  "dr_grpo": Algorithm(
    "dr_grpo", "arXiv:2503.20783", "code", _constants(singleton="zero"),
    needs=("group",), aggregation="token_sum_over_constant"),
  "dapo": _replace(
    _GRPO, source="arXiv:2503.14476", clip_high=0.28, kl_coef=0.0),
  "rloo": Algorithm(
    "rloo", "arXiv:2402.14740", "code", needs=("group", "reference"),
    options=_constants(singleton="zero", kl_reward=0.001)),
  "reinforce_pp": Algorithm("reinforce_pp", "arXiv:2501.03262", "code"),
  "reinforce_pp_baseline": Algorithm(
    "reinforce_pp_baseline", "arXiv:2501.03262", "code",
    _constants(singleton="zero"), needs=("group",), kl_coef=0.001),
  "gspo": _replace(
    _GRPO, source="arXiv:2507.18071", ratio="step", clip_low=3e-4,
    clip_high=4e-4, aggregation="step_mean_loss"),
  "gigpo": Algorithm(
    "gigpo", "arXiv:2505.10978", "code", _constants(omega=1.0, **_ZSCORE),
    needs=("group", "anchor"), discount=0.95, kl_coef=0.01),
  "hgpo": Algorithm(
    "hgpo", "arXiv:2602.22817", "code",
    _constants(alpha=1.0, history=1, scale="deviation", base_group=False,
               eps=1e-6),
    needs=("group", "anchor"), discount=0.95, kl_coef=0.01),
  "gagpo": Algorithm(
    "gagpo", "arXiv:2605.13217", "secondary", _constants(**_ZSCORE),
    needs=("group", "anchor"), discount=0.95, lambda_=0.95, ratio="step",
    clip_low=3e-4, clip_high=4e-4, aggregation="step_mean_loss"),
  "sapo_segment": Algorithm(
    "step_gae", "arXiv:2605.01327", "paper", critic="step", ratio="step",
    clip_low=3e-4, clip_high=4e-4, lambda_=0.99, needs=("entropy",),
    segment_share=0.3, value_clip=0.5),
  "sapo_rec": Algorithm(
    "sapo_rec", "arXiv:2605.17648", "secondary",
    _constants(eps=1e-6, divide=True), needs=("group",),
    aggregation="step_mean_loss", kl_coef=0.001),
  "serl": _replace(
    _GRPO, estimator="serl", source="arXiv:2605.19447", needs=_TAUGHT,
    options=_constants(mix=0.5, **_BAND), mix_updates=50),
  "stepopsd": _replace(
    _GRPO, estimator="stepopsd", source="arXiv:2605.27140", needs=_TAUGHT,
    options=_constants(mix=0.5, span="step", equal_step_mean_abs=False,
                       limit=2.0, **_BAND),
    mix_updates=50, teacher_lag=10),
  "agentopsd": _replace(
    _GRPO, estimator="agentopsd", source="arXiv:2608.05987", needs=_TAUGHT,
    options=_constants(decay=0.95, mix=0.5, band=0.2, **_ZSCORE)),
  "vetta": Algorithm(
    "vetta", "VETTA", "paper",
    _constants(alpha=1.0, token_discount=1.0, token_lambda=1.0),
    critic="both", discount=0.95, lambda_=0.95, dual_clip=3.0, kl_coef=0.01,
    value_clip=0.5),
  "cispo": _replace(
    _GRPO, source="arXiv:2506.13585", surrogate="cispo", clip_high=0.28,
    kl_coef=0.0),
  "gmpo": _replace(
    _GRPO, source="arXiv:2507.20673", surrogate="log_clip", ratio="step",
    clip_low=0.4, clip_high=0.4, aggregation="step_mean_loss", kl_coef=0.0),
  "soft": _replace(
    _GRPO, source="arXiv:2511.20347", surrogate="soft", kl_coef=0.0),
  "actfocus_ppo": Algorithm(
    "token_gae", "arXiv:2605.14558", "paper", critic="token", clip_high=0.28,
    focus_alpha=0.1, focus_beta=0.5, entropy_coef=0.001, value_clip=0.5),
  "actfocus_grpo": _replace(
    _GRPO, source="arXiv:2605.14558", evidence="paper", clip_high=0.28,
    focus_alpha=0.1, focus_beta=0.5, entropy_coef=0.001, kl_coef=0.0),
}  # fmt: skip

# What each evidence of a row says.
EVIDENCE = {
  "code": "public code was read, and its numbers are ours",
  "paper": "the paper was read",
  "secondary": "somebody else's account was read",
  "reconstruction": "what was not published is completed by us",
}

# Methods that are known by name, with what is missing for a row.
SLOTS = {
  "gear": "arXiv:2605.11853: abstracts are all that is public, without a"
  " formula; see docs/algorithms.md.",
}

# Widest clip that a ratio of each kind is known to meet in use, and the
# narrowest. A geometric mean of L tokens moves 1/√L as far as one token.
_CLIP_RANGE = {"token": (0.02, 10.0), "step": (1e-5, 0.5)}


def get(name: str) -> Algorithm:
  """Returns the row of that name.

  Raises:
    ValueError: there is none; the message names the nearest.
  """
  if name in SLOTS:
    raise ValueError(
      f"algorithm {name!r} is a slot without a row. {SLOTS[name]}"
    )
  return lookup("algorithm", name, ALGORITHMS)


def weighted(algorithm: Algorithm, weighting: str) -> Algorithm:
  """The row with the loss averaged so that each of something counts the same.

  Args:
    algorithm: A row.
    weighting: "token"; "step": a mean over the tokens of each step first; or
      "trajectory": a mean over the tokens of each step, then over the steps of
      each trajectory.

  Raises:
    ValueError: `weighting` is none of these.
  """
  name = lookup("loss_weighting", weighting, LOSS_WEIGHTINGS)
  return dataclasses.replace(algorithm, aggregation=name)


def lookup(kind: str, name: str, table: Mapping[str, Any]) -> Any:
  """What a table has under a name.

  Raises:
    ValueError: nothing; the message names the nearest.
  """
  if name in table:
    return table[name]
  near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
  hint = f", did you mean {near[0]!r}" if near else ""
  raise ValueError(f"unknown {kind} {name!r}{hint}; known: {', '.join(table)}")


def check_clip(algorithm: Algorithm) -> None:
  """Refuses a clip that cannot fit the ratio it belongs to.

  A clip of 3e-4 on a token ratio clips everything, one past 0.5 on a pooled
  ratio never binds, and a lower clip from 1 on lets the ratio reach 0.

  Raises:
    ValueError: the clip is out of range for the ratio; the message says which
      range fits.
  """
  if algorithm.surrogate == "soft":
    return
  kind = "token" if algorithm.surrogate == "log_clip" else algorithm.ratio
  low, high = _CLIP_RANGE[kind]
  for field in ("clip_low", "clip_high"):
    width = getattr(algorithm, field)
    if not low <= width <= high:
      raise ValueError(
        f"{field}={width:g} does not fit a {kind} ratio: use {low:g} to"
        f" {high:g}; a clip made for one kind of ratio binds always or never"
        " on another"
      )
  if algorithm.clip_low > 1 and algorithm.surrogate == "clip":
    raise ValueError(
      f"clip_low={algorithm.clip_low:g} lets the ratio fall below 0: use at"
      " most 1"
    )
  if algorithm.dual_clip is not None and not algorithm.dual_clip > 1:
    raise ValueError(
      f"dual_clip={algorithm.dual_clip:g} must be above 1, or None for none"
    )


def check_mix(algorithm: Algorithm) -> None:
  """Refuses a schedule of `mix` for a row that has none.

  Raises:
    ValueError: the row has no `mix`.
  """
  if algorithm.mix_updates and "mix" not in dict(algorithm.options):
    raise ValueError(
      f"mix_updates={algorithm.mix_updates} is not read by estimator"
      f" {algorithm.estimator!r}, which has no mix: leave it out"
    )


_COMPARED = "episodes of one task are compared, set group_size above 1"
_PROVIDED_BY = {
  "group": _COMPARED,
  "anchor": _COMPARED,
  "teacher": "algorithm.teacher=peer shows the policy a successful episode,"
  " =hindsight tells it how its own ended, or it names a file of weights",
  "reference": "a KL term needs the parameters of a reference policy, or"
  " algorithm.kl_coef=0",
  "critic": "values come from the critic in the learner's state",
  "entropy": "entropies come from the policy before the update",
  "reasoning": "thoughts are told from actions by the prompt's method"
  " `reasoning`, and packed by packing.rows.pack(reasoning=True)",
}


def check_needs(algorithm: Algorithm, provided: set[str]) -> None:
  """Refuses an algorithm whose needs the run cannot meet.

  Args:
    algorithm: A row.
    provided: Which of "critic", "reference", "group", "anchor", "teacher",
      "entropy" and "reasoning" the run has.

  Raises:
    ValueError: something is missing; the message says what, and which option
      provides it.
  """
  missing = sorted(algorithm.wants - provided)
  if missing:
    ways = "; ".join(dict.fromkeys(_PROVIDED_BY[need] for need in missing))
    raise ValueError(
      f"estimator {algorithm.estimator!r} needs {', '.join(missing)}, which"
      f" this run does not provide: {ways}"
    )
