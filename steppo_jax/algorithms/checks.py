"""What constants of a row must be, and when a row reads them.

`table` checks the clip and what a run has to provide.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from steppo_jax.algorithms.table import Algorithm

_Test = Callable[[float], bool]

# What each number may be; no test holds for NaN. `table.check_clip` has the
# widths of the clip, `check_modes` the two bands that have to fit each other.
RANGES: tuple[tuple[str, _Test, tuple[str, ...]], ...] = (
  (
    "from 0 to 1",
    lambda x: 0 <= x <= 1,
    ("discount", "lambda_", "token_discount", "token_lambda", "mix", "decay",
     "band", "segment_share", "low"),
  ),
  (
    "at least 0 and finite",
    lambda x: 0 <= x < math.inf,
    ("power", "eps", "alpha", "omega", "history", "kl_coef", "kl_reward",
     "entropy_coef", "focus_alpha", "focus_beta", "mix_updates", "teacher_lag",
     "max_staleness"),
  ),
  (
    "above 0 and finite",
    lambda x: 0 < x < math.inf,
    ("constant", "kl_target", "tau"),
  ),
  (
    "above 0",
    lambda x: x > 0,
    ("value_clip", "advantage_clip", "sequence_mask"),
  ),
  ("at least 0", lambda x: x >= 0, ("high",)),
  ("at least 1", lambda x: x >= 1, ("limit",)),
  ("above 1", lambda x: x > 1, ("dual_clip",)),
)  # fmt: skip


def check_ranges(given: Mapping[str, Any]) -> None:
  """Refuses constants that their formulas cannot mean.

  Args:
    given: Constants by name.

  Raises:
    ValueError: one is out of its range, or no number.
  """
  for text, holds, names in RANGES:
    for name in names:
      value = given.get(name)
      if value is None:
        continue
      for one in value if isinstance(value, tuple) else (value,):
        if not holds(one):
          raise ValueError(f"algorithm.{name}={one:g} must be {text}")


# Estimators of the table that take γ or λ and read none; a registered one is
# taken to read both.
_NO_DISCOUNT = (
  "grpo", "dr_grpo", "rloo", "reinforce_pp_baseline", "sapo_rec", "serl",
  "stepopsd", "agentopsd",
)  # fmt: skip
_NO_LAMBDA = (*_NO_DISCOUNT, "reinforce_pp", "gigpo", "hgpo")
_OTHER_MEANS = (
  "token_mean", "step_mean_loss", "trajectory_step_mean",
  "trajectory_token_mean",
)  # fmt: skip


# Whether a row reads a constant, and where one does. Those that are not named
# here are read by every row that has them.
READ: dict[str, tuple[Callable[[Algorithm], bool], str]] = {
  "discount": (
    lambda row: row.estimator not in _NO_DISCOUNT,
    "the estimator discounts rewards, as that of steppo does",
  ),
  "lambda_": (
    lambda row: row.estimator not in _NO_LAMBDA,
    "the estimator is a GAE, as that of steppo is",
  ),
  "power": (lambda row: row.ratio == "step", "algorithm.ratio=step"),
  "center": (
    lambda row: (
      row.ratio == "step" and row.power != 1 and row.surrogate != "log_clip"
    ),
    "algorithm.ratio=step, with another algorithm.power than 1, which cancels "
    "it, and another algorithm.surrogate than log_clip",
  ),
  "clip_low": (
    lambda row: row.surrogate != "soft",
    "algorithm.surrogate is another than soft",
  ),
  "clip_high": (
    lambda row: row.surrogate != "soft",
    "algorithm.surrogate is another than soft",
  ),
  "dual_clip": (
    lambda row: row.surrogate not in ("cispo", "soft", "log_clip"),
    "algorithm.surrogate=clip",
  ),
  "tau": (
    lambda row: row.surrogate not in ("clip", "cispo", "log_clip"),
    "algorithm.surrogate=soft",
  ),
  "constant": (
    lambda row: row.aggregation not in _OTHER_MEANS,
    "algorithm.aggregation=token_sum_over_constant",
  ),
  "mix_updates": (
    lambda row: "mix" in row.constants,
    "the estimator has a mix, as that of serl has",
  ),
  "teacher_lag": (
    lambda row: "teacher" in row.needs,
    "the row needs a teacher, as stepopsd does",
  ),
  "value_clip": (
    lambda row: row.critic is not None,
    "the row has a critic, as steppo has",
  ),
  "rollout_low": (
    lambda row: row.rollout_correction in ("icepop", "geometric"),
    "algorithm.rollout_correction is icepop or geometric",
  ),
  "rollout_high": (
    lambda row: row.rollout_correction is not None,
    "algorithm.rollout_correction is set",
  ),
  "limit": (
    lambda row: bool(row.constants.get("equal_step_mean_abs")),
    "algorithm.equal_step_mean_abs=True",
  ),
  "eps": (
    lambda row: (
      row.constants.get("divide", True) and row.constants.get("scale") != "none"
    ),
    "a deviation divides: algorithm.scale=deviation or algorithm.divide=True",
  ),
  "alpha": (
    lambda row: (
      row.estimator != "hgpo"
      or row.constants["history"] > 0
      or row.constants["base_group"]
    ),
    "there are several levels: algorithm.history above 0 or "
    "algorithm.base_group=True",
  ),
}


def unread(row: Algorithm, given: Mapping[str, Any]) -> dict[str, str]:
  """Constants that a row has and does not read, and where one would be read.

  Args:
    row: Made with `given`.
    given: Constants by name.
  """
  return {
    name: where
    for name, (reads, where) in READ.items()
    if name in given and not reads(row)
  }


def check_modes(algorithm: Algorithm) -> None:
  """Refuses settings of the modes that cannot be meant.

  Raises:
    ValueError: a band leaves out 1, an option stands without what it needs, or
      there is no such correction.
  """
  kinds = ("tis_token", "tis_step", "icepop", "geometric")
  kind, low, high = (
    algorithm.rollout_correction, algorithm.rollout_low, algorithm.rollout_high
  )  # fmt: skip
  if kind is not None and kind not in kinds:
    raise ValueError(
      f"rollout_correction={kind!r} is none of {', '.join(kinds)}"
    )
  if not 0 <= low <= 1 <= high:
    raise ValueError(
      f"rollout_low={low:g} and rollout_high={high:g} must lie around 1: a"
      " policy that agrees with its sampler is weighed by 1"
    )
  length, cache = algorithm.overlong_length, algorithm.overlong_cache
  together = length is not None and cache is not None
  if (length, cache) != (None, None) and not (
    together and length > 0 and 0 <= cache <= length
  ):
    raise ValueError(
      f"overlong_length={length} and overlong_cache={cache} are set together,"
      " the length above 0 and the cache from 0 to the length"
    )
  if algorithm.kl_target is not None and not algorithm.kl_coef:
    raise ValueError(
      f"kl_target={algorithm.kl_target:g} multiplies kl_coef, which is 0: set"
      " kl_coef to the weight that it begins with"
    )
  if algorithm.focus_alpha is None and algorithm.focus_beta:
    raise ValueError(
      f"focus_beta={algorithm.focus_beta:g} is not read without focus_alpha:"
      " set both, 1 weighs thoughts like actions"
    )
