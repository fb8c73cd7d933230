"""What came of a rollout, in numbers."""

import collections
from collections.abc import Sequence

from steppo_jax import types


def summary(
  trajectories: Sequence[types.Trajectory],
) -> dict[str, tuple[float, float]]:
  """Rollout metrics as (sum, weight) by name; errors count in their own rate.

  Every episode that was issued is either whole or in one `error/CAUSE`.

  Args:
    trajectories: Finished episodes.
  """
  whole = [t for t in trajectories if t.error is None]
  steps = [s for t in whole for s in t.steps]
  out = {
    "episodes": (float(len(trajectories)), 1.0),
    "error_share": (len(trajectories) - len(whole), len(trajectories)),
    "retries": (sum(len(t.retried) for t in trajectories), 1),
    "success": (sum(t.success for t in whole), len(whole)),
    "reward": (sum(t.total_reward for t in whole), len(whole)),
    "truncated_share": (sum(t.steps[-1].truncated for t in whole), len(whole)),
    "steps": (len(steps), len(whole)),
    "invalid_share": (
      sum(s.metadata.get("invalid", False) for s in steps),
      len(steps),
    ),
    "cut_response_share": (
      sum(s.stop_reason == "length" for s in steps),
      len(steps),
    ),
    "response_tokens": (sum(len(s.response_ids) for s in steps), len(steps)),
  }
  late = sum(t.steps[-1].metadata.get("late", False) for t in whole)
  if late:
    # Cut by `rollout.max_seconds`.
    out["late_share"] = (late, len(whole))
  for kind, solved in (("won", True), ("lost", False)):
    of = [s for t in whole if t.success == solved for s in t.steps]
    tokens = sum(len(s.response_ids) for s in of)
    out[f"response_tokens_{kind}"] = (tokens, len(of))
  for family in sorted({t.task.family for t in whole}):
    of = [t for t in whole if t.task.family == family]
    out[f"success/{family}"] = (sum(t.success for t in of), len(of))
    out[f"episodes/{family}"] = (len(of), 1)
  for score in sorted({name for t in whole for name in t.scores}):
    of = [t.scores[score] for t in whole if score in t.scores]
    out[f"scores/{score}"] = (sum(of), len(of))
  won = [t for t in whole if t.success and t.task.golden_steps]
  out["length_over_golden"] = (
    sum(len(t.steps) / t.task.golden_steps for t in won),
    len(won),
  )
  for kind, reasons in (
    ("error", [t.error for t in trajectories if t.error is not None]),
    ("retried", [reason for t in trajectories for reason in t.retried]),
  ):
    causes = collections.Counter(r.partition(":")[0] for r in reasons)
    out |= {f"{kind}/{cause}": (n, 1) for cause, n in sorted(causes.items())}
  return {name: (float(a), float(b)) for name, (a, b) in out.items()}


def staleness(
  trajectories: Sequence[types.Trajectory], update: int
) -> dict[str, tuple[float, float]]:
  """How far behind the weights were that sampled the steps of an update.

  A step's staleness is the number of updates between the weights that sampled
  it and those that it trains.

  Args:
    trajectories: Whole episodes.
    update: The updates done before they are trained on.

  Returns:
    As (sum, weight): the mean `staleness`, and for each that occurs the share
    of steps `staleness_share/K`.
  """
  behind = [update - s.policy_version for t in trajectories for s in t.steps]
  shares = collections.Counter(behind)
  return {"staleness": (float(sum(behind)), float(len(behind)))} | {
    f"staleness_share/{k}": (float(n), float(len(behind)))
    for k, n in sorted(shares.items())
  }
