"""Options of the algorithm: a row of the table, and what replaces its own."""

import dataclasses
from typing import Literal

from steppo_jax.algorithms import checks, table

# Teachers that are the policy itself, told more; see `packing.teacher_rows`.
PEER, HINDSIGHT = "peer", "hindsight"


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  """The row of the table and the constants that replace the row's own.

  Attributes:
    name: See `python -m steppo_jax algorithms`.
    discount: γ on the estimator's clock.
    lambda_: λ on the estimator's clock.
    clip_low: Distance of the clip below 1; it belongs to the kind of ratio.
    clip_high: Distance of the clip above 1.
    kl_coef: Weight of the KL to the starting policy.
    entropy_coef: Weight of the entropy bonus.
    ratio: "token" or "step", whatever the credit; its clip has to fit.
    loss_weighting: What counts the same in the loss: each "token", each "step"
      or each "trajectory".
    focus_alpha: Weight of the tokens of thoughts in the loss; any row may have
      one, where the prompt tells thoughts from actions.
    focus_beta: Largest extra weight of an action token; see
      `ops.shaping.focus_weight`.
    rollout_correction: Weighs tokens by how far the policy before the update is
      from the one that sampled, and clips around the former: "tis_token",
      "tis_step", "icepop", "geometric".
    rollout_low: Lower end of the band of those weights.
    rollout_high: Their cap, or the upper end of the band.
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
        or a teacher or schedule that the row does not read.
    """
    changes = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(table.Algorithm)
      if getattr(self, field.name, None) is not None
    }
    row = dataclasses.replace(table.get(self.name), **changes)
    if self.teacher_file is not None:
      row = dataclasses.replace(row, teacher_lag=0)
    for name in ("span", "equal_step_mean_abs"):
      row = table.with_option(row, name, getattr(self, name))
    if self.loss_weighting is not None:
      row = table.weighted(row, self.loss_weighting)
    table.check_clip(row)
    table.check_mix(row)
    checks.check_focus(row)
    checks.check_modes(row)
    if self.teacher is not None and "teacher" not in row.needs:
      raise ValueError(
        f"algorithm.teacher={self.teacher} is not read by {self.name}: leave "
        "it out"
      )
    return row


BOOTSTRAPS = ("value", "zero", "drop_last")
