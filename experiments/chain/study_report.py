"""Tables and the figure of `estimators_study`; not an experiment."""

import numpy as np
from matplotlib import figure

from steppo_jax.reports import intervals

# What is true, and what is measured against it.
AIMS = ("discounted", "success")
NAMES = ("bias", "variance", "correlation", "gradient")


def over_seeds(lines, number) -> dict[tuple, tuple[float, float, float]]:
  """Mean and bootstrap interval over seeds by (policy, label, episodes)."""
  by = {}
  for line in lines:
    key = line["policy"], line["label"], line["episodes"]
    by.setdefault(key, []).append(line[number])
  return {
    key: (float(np.mean(x)), *intervals.bootstrap_interval(x, 0))
    for key, x in by.items()
  }


DRAWN = (
  "steppo γ0.95 λ0.95, critic exact", "steppo γ0.95 λ0.95, critic error 2",
  "steppo γ0.99 λ1, critic exact", "ppo γ0.95 λ0.95, critic exact",
  "ppo γ1 λ1, critic exact", "grpo γ1 λ1", "reinforce_pp γ1 λ1",
  "gigpo γ0.95 λ1", "gagpo γ1 λ1", "steppo γ0.95 λ0.95, critic none",
)  # fmt: skip


def draw(path, lines):
  """Both aims of the first policy against the number of episodes."""
  sheet = figure.Figure(figsize=(11, 6), layout="constrained")
  grid = sheet.subplots(2, 4)
  policy = lines[0]["policy"]
  for line_of_axes, aim in zip(grid, AIMS, strict=True):
    for axes, name in zip(line_of_axes, NAMES, strict=True):
      found = over_seeds(lines, f"{name}/{aim}")
      for i, label in enumerate(DRAWN):
        sizes = sorted(n for p, x, n in found if (p, x) == (policy, label))
        mean, low, high = np.array([found[policy, label, n] for n in sizes]).T
        mark = "o" if "critic" in label else "s"
        axes.plot(sizes, mean, mark + "-", ms=3, color=f"C{i}", label=label)
        axes.fill_between(sizes, low, high, color=f"C{i}", alpha=0.2)
      axes.set(xscale="log", xlabel="episodes", title=f"{name}, {aim}")
      if name == "variance":
        axes.set(yscale="log")
  sheet.legend(
    *grid[0, 0].get_legend_handles_labels(), loc="outside lower center",
    ncols=3, fontsize=7,
  )  # fmt: skip
  sheet.savefig(path, dpi=80)


def tables(lines, size) -> str:
  """Markdown of one batch size, for both policies and aims."""
  text = []
  for policy in dict.fromkeys(line["policy"] for line in lines):
    columns = [f"{name}/{aim}" for aim in AIMS for name in NAMES]
    text += [f"policy {policy}, {size} episodes", ""]
    text += [f"| estimator | {' | '.join(columns)} |"]
    text += ["|---" * (len(columns) + 1) + "|"]
    found = {column: over_seeds(lines, column) for column in columns}
    for label in dict.fromkeys(line["label"] for line in lines):
      parts = [found[column][policy, label, size] for column in columns]
      text.append(
        f"| {label} | "
        + " | ".join(f"{m:.3g} [{a:.3g}, {b:.3g}]" for m, a, b in parts)
        + " |"
      )
    text.append("")
  return "\n".join(text)
