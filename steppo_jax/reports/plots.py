"""The figure of a report: curves of runs, and where their time went."""

from steppo_jax.reports import goodput

SUCCESS = "eval/success"

# Training curves below success, one panel each.
_CURVES = (
  ("rollout/success", "rollout/invalid_share", "critic/explained_variance"),
  ("policy/entropy", "policy/clip_fraction", "policy/approx_kl"),
  (
    "policy/policy_loss",
    "critic/value_loss",
    "policy/ratio_q01",
    "policy/ratio_q99",
  ),
)


def _draw_success(axes, curve, x, control):
  axes.plot([e[x] for e in curve], [e[SUCCESS] for e in curve], marker=".")
  axes.fill_between(
    [e[x] for e in curve],
    [e["low"] for e in curve],
    [e["high"] for e in curve],
    alpha=0.25,
    label="95 % interval",
  )
  axes.axhline(curve[0][SUCCESS], color="grey", linestyle=":", label="start")
  if control is not None:
    axes.errorbar(
      [e[x] for e in control],
      [e[SUCCESS] for e in control],
      [
        [e[SUCCESS] - e["low"] for e in control],
        [e["high"] - e[SUCCESS] for e in control],
      ],
      color="tab:orange",
      linestyle="--",
      capsize=2,
      label="control: supervised",
    )
  axes.set(xlabel=x, ylabel="success on unseen games", ylim=(0, 1))
  axes.legend(loc="lower right")


def _draw_curves(axes, runs, names):
  for number, name in enumerate(names):
    for position, run in enumerate(runs):
      points = [(x["update"], x[name]) for x in run.lines if name in x]
      if points:
        axes.plot(
          *zip(*points, strict=True),
          color=f"C{number}",
          linewidth=1,
          label=name if position == 0 else None,
        )
  axes.set(xlabel="update")
  if axes.has_data():
    # An untrained critic explains far less than nothing.
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -1.0))
    axes.legend()


def draw(path, runs, curve, control) -> None:
  """Draws success with its interval, curves of training, and the time.

  Args:
    path: PNG to write.
    runs: From `reports.report.read_run`.
    curve: From `reports.report.combine`.
    control: The same of the runs that are drawn for comparison, or None.
  """
  # Slow to import, and needs no display.
  from matplotlib import figure

  canvas = figure.Figure(figsize=(10, 10), layout="constrained")
  grid = canvas.subplots(3, 2)
  _draw_success(grid[0, 0], curve, "update", None)
  _draw_success(grid[0, 1], curve, "minutes", control)
  panels = (*grid[1], grid[2, 0])
  for axes, names in zip(panels, _CURVES, strict=True):
    _draw_curves(axes, runs, names)
  goodput.draw(grid[2, 1], runs[0].path)
  title = f"{runs[0].path.resolve().name}, "
  title += f"{len(runs)} runs" if len(runs) > 1 else "one run"
  canvas.suptitle(title)
  canvas.savefig(path, dpi=120)
