"""What the comparisons say of the paper's four claims, with intervals.

    python experiments/analysis/claims.py docs/compare

reads the results of the matrices and prints a table, of the household's short
actions unless a line begins otherwise; "long" are 28 tokens an action. Each
line is a contrast of mean success: its estimate, the 95 % interval of Student's
t with the deviation within the methods of that file pooled, the gain that the
paper reports (arXiv 2604.18401, ALFWorld seen, discounts: WebShop) in parts of
the level it was seen at, scaled to the level here, and a verdict:

    supported       the interval lies above 0
    not supported   the interval lies below what the paper reports
    undecided       neither: the runs are too few for this question

The last column is the same contrast of the success of all episodes that were
sampled while training. It is of many more episodes, and it was looked at after
the runs of the short games: no verdict comes from it.
"""

import pathlib
import sys

import numpy as np
from scipy import stats

from steppo_jax.compare import report as compare_report

# In parts of what the other side reaches.
_PAPER_PPO = 92.14 / 76.43 - 1
_RIVALS = {
  "ppo": _PAPER_PPO,
  "reinforce_pp": 92.14 / 72.86 - 1,
  "grpo": 92.14 / 81.43 - 1,
  "rloo": 92.14 / 75.71 - 1,
  "gspo": 92.14 / 79.29 - 1,
  "gigpo": 92.14 / 88.57 - 1,
  "capo": 92.14 / 92.86 - 1,
  "turn_ppo": None,
  "gagpo": None,
}
# Full, without step credit, without step ratio, without both.
_FULL, _NO_CREDIT, _NO_RATIO, _NEITHER = 92.14, 81.43, 84.29, 76.43
_LEVEL = (_FULL + _NO_CREDIT + _NO_RATIO + _NEITHER) / 4
_CREDIT = (_FULL - _NO_CREDIT + _NO_RATIO - _NEITHER) / 2 / _LEVEL
_RATIO = (_FULL - _NO_RATIO + _NO_CREDIT - _NEITHER) / 2 / _LEVEL
_STEP, _TOKEN = (77.52, 73.23), (72.12, 62.68)  # γ 0.99, 0.95.
_ROBUST = (_TOKEN[0] - _TOKEN[1] - _STEP[0] + _STEP[1]) / np.mean(
  _STEP + _TOKEN
)

# Two of the four against the other two.
_STEP_CREDIT = {
  "steppo": 0.5,
  "step_credit_token_ratio": 0.5,
  "token_credit_step_ratio": -0.5,
  "ppo": -0.5,
}
_STEP_RATIO = _STEP_CREDIT | {
  "step_credit_token_ratio": -0.5,
  "token_credit_step_ratio": 0.5,
}


def _best(prefix, file, rivals=_RIVALS):
  """Claim 1 in a file: StepPO against each of the others."""
  return (
    (f"{prefix}1 StepPO - {name}", file, {"steppo": 1, name: -1}, gain)
    for name, gain in rivals.items()
  )


def _both(prefix, file):
  """Claims 2 and 3 in a file with the ablation's four."""
  return (
    (f"{prefix}2 step credit - token credit", file, _STEP_CREDIT, _CREDIT),
    (f"{prefix}3 step ratio - token ratio", file, _STEP_RATIO, _RATIO),
  )


# Claim, file, what is weighed against what, the paper's gain.
CONTRASTS = (
  *_best("", "household"),
  *_both("", "ablation"),
  (
    "4 what γ 0.95 costs, token - step",
    "discount",
    {"steppo_0.95": 1, "steppo_0.99": -1, "ppo_0.95": -1, "ppo_0.99": 1},
    _ROBUST,
  ),
  (
    "γ 0.95 - 0.99 a step",
    "discount",
    {"steppo_0.95": 1, "steppo_0.99": -1},
    None,
  ),
  ("γ 0.95 - 0.99 a token", "discount", {"ppo_0.95": 1, "ppo_0.99": -1}, None),
  (
    "bootstrap - zero after a cut",
    "discount",
    {"steppo_0.99": 1, "steppo_0.99_zero": -1},
    None,
  ),
  *(
    (
      f"StepPO - PPO, {n} updates a batch",
      "updates",
      {f"steppo_{n}": 1, f"ppo_{n}": -1},
      _PAPER_PPO,
    )
    for n in (1, 4, 16)
  ),
  (
    "the same, mean of the three",
    "updates",
    {
      f"{name}_{n}": sign / 3
      for name, sign in (("steppo", 1), ("ppo", -1))
      for n in (1, 4, 16)
    },
    _PAPER_PPO,
  ),
  (
    "16 - 1 updates a batch",
    "updates",
    {"steppo_16": 0.5, "ppo_16": 0.5, "steppo_1": -0.5, "ppo_1": -0.5},
    None,
  ),
  (
    "loss by step - by trajectory",
    "weighting",
    {"step": 1, "trajectory": -1},
    None,
  ),
  ("loss by step - by token", "weighting", {"step": 1, "token": -1}, None),
  *(
    (name, "critic", {better: 1, worse: -1}, None)
    for name, better, worse in (
      ("PPO - StepPO, no critic", "ppo_frozen", "steppo_frozen"),
      ("a critic - none, StepPO", "steppo_once", "steppo_frozen"),
      ("a critic - none, PPO", "ppo_once", "ppo_frozen"),
      (
        "4 passes of the critic - 1, StepPO",
        "steppo_four_times",
        "steppo_once",
      ),
      ("4 passes of the critic - 1, PPO", "ppo_four_times", "ppo_once"),
      (
        "loss by token - by step, no critic, StepPO",
        "steppo_by_token_frozen",
        "steppo_frozen",
      ),
      (
        "loss by token - by step, no critic, PPO",
        "ppo_frozen",
        "ppo_by_step_frozen",
      ),
    )
  ),
  *_best("equal rates: ", "equal"),
  *_both("equal rates: ", "equal_ablation"),
  *(
    (name, "group_weighting", {better: 1, worse: -1}, None)
    for name, better, worse in (
      ("loss by token - by step, GSPO", "gspo_by_token", "gspo"),
      ("loss by token - by step, GRPO", "grpo", "grpo_by_step"),
      ("GSPO - GRPO, both by token", "gspo_by_token", "grpo"),
    )
  ),
  *_best("long: ", "scratchpad"),
  *_both("long: ", "scratchpad_ablation"),
  *(
    (
      f"{steps} steps: 1 StepPO - {name}",
      "horizon",
      {f"{steps}_steps/steppo": 1, f"{steps}_steps/{name}": -1},
      _RIVALS[name],
    )
    for name in ("ppo", "gigpo")
    for steps in (10, 20, 40)
  ),
  (
    "StepPO - PPO, 40 steps - 10",
    "horizon",
    {
      "40_steps/steppo": 1,
      "40_steps/ppo": -1,
      "10_steps/steppo": -1,
      "10_steps/ppo": 1,
    },
    None,
  ),
  *_best("shop: ", "shop", {k: _RIVALS[k] for k in ("ppo", "grpo", "gigpo")}),
  *_both("shop: ", "shop"),
)


def contrast(groups, weights):
  """A weighted sum of means with its 95 % interval.

    s^2 = sum over groups of squared deviations / (runs - groups)
    interval = sum_g w_g mean_g +- t s sqrt(sum_g w_g^2 / n_g)

  Args:
    groups: Success of each run by method; all of them give the deviation.
    weights: By method, for those that are compared.

  Returns:
    Estimate, lower and upper end.

  Raises:
    KeyError: A method has no finished run.
    ValueError: No method has two runs.
  """
  groups = {k: np.asarray(x, np.float64) for k, x in groups.items() if x}
  free = sum(map(len, groups.values())) - len(groups)
  if free < 1:
    raise ValueError("an interval needs two runs of some method")
  squares = sum(((x - x.mean()) ** 2).sum() for x in groups.values())
  spread = sum(w**2 / len(groups[k]) for k, w in weights.items())
  middle = sum(w * groups[k].mean() for k, w in weights.items())
  half = stats.t.ppf(0.975, free) * np.sqrt(squares / free * spread)
  return middle, middle - half, middle + half


def verdict(low, high, reported):
  """Of an interval, against what the paper reports on this level, or None."""
  if low > 0:
    return "supported"
  if reported is not None and high < reported:
    return "not supported"
  return "undecided"


def by_method(path, measure):
  """Values of the finished runs of a file, of each world where it has many."""
  lines = [x for x in compare_report.read(path) if x["kind"] == "final"]
  many = len({x["world"] for x in lines}) > 1
  groups = {}
  for line in lines:
    if line["status"] == "done":
      name = f"{line['world']}/" * many + line["method"]
      groups.setdefault(name, []).append(line[measure])
  return groups


def rows(folder):
  """Yields a name, its contrasts at the end and while training, a paper's."""
  for name, file, weights, gain in CONTRASTS:
    path = pathlib.Path(folder) / f"{file}.jsonl"
    ends = by_method(path, "success")
    level = np.mean([np.mean(ends[k]) for k, w in weights.items() if w < 0])
    yield (
      name,
      contrast(ends, weights),
      contrast(by_method(path, "mean/rollout/success"), weights),
      None if gain is None else gain * level,
    )


def cost(folder):
  """Number of runs in all files of a folder, and their hours together."""
  lines = {}
  for path in sorted(pathlib.Path(folder).glob("*.jsonl")):
    for line in compare_report.read(path):
      # One run may be in several files.
      lines[line["options"]] = line.get("minutes", 0.0)
  return len(lines), sum(lines.values()) / 60


def _shown(middle, low, high):
  return f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"


def main(folder):
  names = ("contrast of success", "at the end", "the paper's, scaled")
  print(f"| {' | '.join(names)} | verdict | while training |")
  print("|---|---|---|---|---|")
  for name, end, training, reported in rows(folder):
    paper = "" if reported is None else f"{reported:+.3f}"
    says = verdict(*end[1:], reported)
    print(
      f"| {name} | {_shown(*end)} | {paper} | {says} | {_shown(*training)} |"
    )
  runs, hours = cost(folder)
  print(f"\n{runs} runs, {hours:.1f} hours in all, one after the other.")


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  main(sys.argv[1])
