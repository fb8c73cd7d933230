"""What the commands share: one line of text, progress bars, options."""

import argparse
import collections
import os
import pathlib

import rich.console
import rich.progress

from steppo_jax import types

console = rich.console.Console(stderr=True)


def say(text: str, style: str | None = None) -> None:
  """One line as it is: a path that is broken in two cannot be copied."""
  console.print(
    text, style=style, markup=False, highlight=False, soft_wrap=True
  )


def progress():
  """Bars on stderr, each with a text of its own."""
  return rich.progress.Progress(
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(bar_width=24),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn("{task.fields[info]}"),
    console=console,
  )


class Failures:
  """Takes episodes that ended in an error, and tells of the first at once.

  As a context it tells at its end how many there were of each cause.

  Args:
    progress: The bars above which it is printed.

  Attributes:
    counts: Number of episodes by cause.
  """

  def __init__(self, progress: rich.progress.Progress):
    self._progress = progress
    self.counts: collections.Counter[str] = collections.Counter()

  def __call__(self, trajectory: types.Trajectory) -> None:
    if not self.counts:
      self._print(f"episode {trajectory.uid} failed: {trajectory.error}")
    self.counts[trajectory.error.partition(":")[0]] += 1

  def __enter__(self) -> "Failures":
    return self

  def __exit__(self, *_) -> None:
    """Prints how many failed by what, if any did."""
    if self.counts:
      causes = ", ".join(f"{n} {c}" for c, n in self.counts.most_common())
      self._print(f"{self.counts.total()} episodes failed: {causes}")

  def _print(self, text: str) -> None:
    self._progress.console.print(
      text, style="red", markup=False, highlight=False, soft_wrap=True
    )


def quiet_jax() -> None:
  """Compile cache beside the results; set before JAX is loaded."""
  cache = pathlib.Path(".cache/jax").absolute()
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def add_experiment(parser: argparse.ArgumentParser) -> None:
  """Adds the argument that names an experiment to a command."""
  parser.add_argument(
    "experiment", nargs="?", help="file that defines CONFIG, such as "
    "experiments/household_steppo.py; with --help behind it, lists the "
    "options that KEY=VALUE can set",
  )  # fmt: skip
  parser.set_defaults(parser=parser)


def options(args, rest):
  """The experiment's options with the assignments applied.

  Raises:
    SystemExit: there is no experiment, or help was asked for and is printed.
    ValueError: the file or an assignment does not fit.
  """
  if args.experiment is None:
    if not {"-h", "--help"} & set(rest):
      args.parser.error("name an experiment, a file that defines CONFIG")
    args.parser.print_help()
    raise SystemExit(0)
  quiet_jax()
  from steppo_jax.training import config

  name = f"{args.command} {args.experiment}"
  return config.override(
    config.load(args.experiment), rest, f"python -m steppo_jax {name}"
  )
