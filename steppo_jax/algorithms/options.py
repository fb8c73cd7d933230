"""Options of the algorithm: a row of the table, and what replaces its own."""

import dataclasses
from typing import Any, Literal

from steppo_jax.algorithms import checks, table

# Teachers that are the policy itself, told more; see `packing.teacher_rows`.
PEER, HINDSIGHT = "peer", "hindsight"


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  """The row of the table and the constants that replace the row's own.

  `row` refuses a constant that the row's estimator does not have, and one out
  of its range (`checks.RANGES`). `unread` tells those that the row has and does
  not read as it is set up (`checks.READ`); a run says so at its start.

  Attributes:
    name: See `python -m steppo_jax algorithms`.
    discount: γ on the estimator's clock.
    lambda_: λ on the estimator's clock.
    clip_low: Distance of the clip below 1; it belongs to the kind of ratio.
    clip_high: Distance of the clip above 1.
    kl_coef: Weight of the KL to the starting policy.
    entropy_coef: Weight of the entropy bonus.
    ratio: "token" or "step", whatever the credit; its clip has to fit.
    power: Exponent of 1 / L when token log-ratios are pooled over a step.
    center: True pools around the mean log-ratio of the mini-batch.
    surrogate: "clip", "cispo", "soft", "log_clip" or a registered one.
    dual_clip: Bound on the ratio where the advantage is negative; inf for none.
    tau: Sharpness of the soft gate for positive and negative advantages.
    aggregation: Function that averages the loss, by its own name.
    constant: Tokens that "token_sum_over_constant" divides by.
    segment_share: Share of the action tokens, by entropy, that end a segment.
    value_clip: Range of the critic's clip, in units of value; inf for none.
    eps: Added to the deviation of a group, in units of reward.
    singleton: What a group of one gets: "zero", or "raw" for its own return.
    omega: Weight of what steps of one state tell, beside the episode's.
    alpha: What a longer history, or the part of tokens, counts.
    history: Anchors before a step's own that are compared, at most.
    scale: What a distance from the mean is divided by: "deviation" or "none".
    base_group: Is the whole group a level of the comparison?
    kl_reward: Weight of the KL that a trajectory pays from its return.
    token_discount: γ of the token's part, where there is one beside the step's.
    token_lambda: λ of the token's part, likewise.
    low: Smallest weight that a teacher gives.
    high: Largest weight that a teacher gives.
    mix: Share of the advantage that is re-weighted.
    decay: Share of a belief that a step hands on.
    band: Of agentopsd: largest distance of a weight from 1.
    limit: Of stepopsd: largest factor that brings steps to one mean size.
    divide: Of sapo_rec: whether a distance from the mean is divided by the
      deviation.
    loss_weighting: What counts the same in the loss: each "token", each "step"
      or each "trajectory".
    focus_alpha: Weight of the tokens of thoughts in the loss; any row may have
      one, where the prompt tells thoughts from actions.
    focus_beta: Largest extra weight of an action token; see
      `ops.shaping.focus_weight`.
    rollout_correction: Weighs tokens by how far the policy before the update is
      from the one that sampled, and clips around the former: "tis_token",
      "tis_step", "icepop", "geometric".
    rollout_low: Lower end of the band of those weights, of a token's ratio for
      "icepop" and of a step's geometric mean for "geometric", where 0.5 hardly
      ever binds; the other kinds do not read it.
    rollout_high: Their cap, or the upper end of the band; inf for none.
    max_staleness: Steps sampled more updates ago train no policy.
    sequence_mask: Nats a token from which on a step of negative advantage
      trains no longer.
    advantage_clip: Largest advantage, on either side of 0.
    overlong_length: Tokens of a response at which its penalty is 1.
    overlong_cache: Tokens before that at which the penalty starts.
    kl_target: Nats a token that the KL is brought to, by changing its weight
      after each update.
    mix_updates: Updates over which the weight of the teacher falls to 0; 0 lets
      it stay.
    teacher_lag: Updates after which a teacher that is the policy itself becomes
      the policy of the time; 0 is the policy before each update.
    span: Of stepopsd: which tokens the teacher re-weights, those of the whole
      "step", of its "action" outside of thoughts, or of the "answer", the
      action of the last step.
    equal_step_mean_abs: Of stepopsd: whether the steps of an episode are then
      brought to one mean size of the advantage.
    teacher: Who re-weights the credit, for the rows that need a teacher: "peer"
      is the policy itself, shown a successful episode of the same task before
      each prompt; "hindsight" is the policy, told behind each prompt whether
      the episode succeeded and, if only others of its task did, how the first
      of them went; any other text is the safetensors file of a policy that sees
      what the student sees.
  """

  name: str = "steppo"
  discount: float | None = None
  lambda_: float | None = None
  clip_low: float | None = None
  clip_high: float | None = None
  kl_coef: float | None = None
  entropy_coef: float | None = None
  ratio: Literal["token", "step"] | None = None
  power: float | None = None
  center: bool | None = None
  surrogate: str | None = None
  dual_clip: float | None = None
  tau: tuple[float, float] | None = None
  aggregation: str | None = None
  constant: float | None = None
  segment_share: float | None = None
  value_clip: float | None = None
  eps: float | None = None
  singleton: Literal["zero", "raw"] | None = None
  omega: float | None = None
  alpha: float | None = None
  history: int | None = None
  scale: Literal["deviation", "none"] | None = None
  base_group: bool | None = None
  kl_reward: float | None = None
  token_discount: float | None = None
  token_lambda: float | None = None
  low: float | None = None
  high: float | None = None
  mix: float | None = None
  decay: float | None = None
  band: float | None = None
  limit: float | None = None
  divide: bool | None = None
  loss_weighting: str | None = None
  focus_alpha: float | None = None
  focus_beta: float | None = None
  rollout_correction: (
    Literal["tis_token", "tis_step", "icepop", "geometric"] | None
  ) = None
  rollout_low: float | None = None
  rollout_high: float | None = None
  max_staleness: int | None = None
  sequence_mask: float | None = None
  advantage_clip: float | None = None
  overlong_length: int | None = None
  overlong_cache: int | None = None
  kl_target: float | None = None
  mix_updates: int | None = None
  teacher_lag: int | None = None
  span: Literal["step", "action", "answer"] | None = None
  equal_step_mean_abs: bool | None = None
  teacher: str | None = None

  @property
  def teacher_file(self) -> str | None:
    """The file of a teacher with weights of its own, None without one."""
    return None if self.teacher in (PEER, HINDSIGHT) else self.teacher

  def row(self) -> table.Algorithm:
    """The row with its constants replaced.

    Raises:
      ValueError: unknown name or weighting, a clip that cannot fit the ratio,
        a constant that is out of range or that the row's estimator does not
        have, or a teacher or schedule that the row does not read.
    """
    row, given = table.get(self.name), self._given()
    checks.check_ranges(given)
    of_row = {field.name for field in dataclasses.fields(table.Algorithm)}
    options = row.constants
    for name in [name for name in given if name not in of_row]:
      if name not in options:
        raise ValueError(
          f"algorithm.{name}={given[name]} is not read by {self.name}, whose "
          f"estimator has {', '.join(options) or 'no constants'}: leave it out"
        )
      options[name] = given.pop(name)
    if self.segment_share is not None and row.segment_share is None:
      raise ValueError(
        f"algorithm.segment_share={self.segment_share} is not read by "
        f"{self.name}, whose steps are not cut: take sapo_segment"
      )
    row = dataclasses.replace(row, **given, options=tuple(options.items()))
    if row.surrogate == "log_clip" and row.ratio != "step":
      raise ValueError(
        "algorithm.surrogate=log_clip clips tokens and pools them: it needs "
        "algorithm.ratio=step"
      )
    if self.loss_weighting is not None and self.aggregation is not None:
      raise ValueError(
        f"algorithm.loss_weighting={self.loss_weighting} and algorithm."
        f"aggregation={self.aggregation} say the same: leave one out"
      )
    if self.teacher_file is not None:
      row = dataclasses.replace(row, teacher_lag=0)
    if self.loss_weighting is not None:
      row = table.weighted(row, self.loss_weighting)
    table.check_clip(row)
    table.check_mix(row)
    checks.check_modes(row)
    if self.teacher is not None and "teacher" not in row.needs:
      raise ValueError(
        f"algorithm.teacher={self.teacher} is not read by {self.name}: leave "
        "it out"
      )
    return row

  def unread(self) -> dict[str, str]:
    """What is set and has no effect, and where it would have one, by name.

    A value that is the row's own is left out.

    Raises:
      ValueError: see `row`.
    """
    own, row = table.get(self.name), self.row()
    found = checks.unread(row, self._given())
    if self.teacher_file is not None and self.teacher_lag:
      found["teacher_lag"] = (
        f"algorithm.teacher is {PEER} or {HINDSIGHT}, the policy itself"
      )
    own_value = lambda name: own.constants.get(name, getattr(own, name, None))
    return {
      name: where
      for name, where in found.items()
      if getattr(self, name) != own_value(name)
    }

  def _given(self) -> dict[str, Any]:
    """The constants that are set, by name."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in ("name", "loss_weighting", "teacher")
      and getattr(self, field.name) is not None
    }


BOOTSTRAPS = ("value", "zero", "drop_last")
