"""What the commands share: one line of text, progress bars, options."""

import argparse
import collections
import contextlib
import io
import os
import pathlib
import select
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from typing import TextIO

import rich.console
import rich.progress

from steppo_jax import types

console = rich.console.Console(stderr=True)


def say(text: str, style: str | None = None) -> None:
  """One line as it is: a path that is broken in two cannot be copied."""
  console.print(
    text, style=style, markup=False, highlight=False, soft_wrap=True
  )


# Of the pool of XLA. Two devices got along with 3 (docs/errors.md); the others
# are for programs in which more operations wait at once.
_THREADS_PER_DEVICE = 8
# What a shell says of a program that SIGPIPE ended.
UNREAD = 128 + signal.SIGPIPE
INTERRUPTED = 128 + signal.SIGINT


@contextlib.contextmanager
def while_read() -> Iterator[None]:
  """Ends the program quietly when nobody reads its output any more (`| head`).

  What is printed is also flushed here: left to the end of the interpreter, it
  would complain there. A broken pipe to anything else, such as a worker, is
  raised as it is.

  Raises:
    SystemExit: the reader is gone; the status is `UNREAD`.
  """
  try:
    try:
      yield
    except SystemExit as stop:
      # The form in which rich's consoles tell of it.
      if isinstance(stop.__context__, BrokenPipeError):
        _silence()
        raise SystemExit(UNREAD) from None
      _flush()
      raise
    _flush()
  except BrokenPipeError:
    if not _silence():
      raise
    raise SystemExit(UNREAD) from None


def _silence() -> bool:
  """Lets what is still to be written go nowhere; whether it had to."""
  unread = [s for s in (sys.stdout, sys.stderr) if _unread(s)]
  with open(os.devnull, "wb") as nowhere:
    for stream in unread:
      os.dup2(nowhere.fileno(), stream.fileno())
  return bool(unread)


def _flush() -> None:
  for stream in (sys.stdout, sys.stderr):
    stream.flush()


def _unread(stream: TextIO) -> bool:
  """Whether a stream is a pipe or socket whose other end is closed."""
  try:
    watched = select.poll()
    watched.register(stream.fileno(), 0)  # Errors are always told.
  except (io.UnsupportedOperation, ValueError):
    return False
  return bool(watched.poll(0))


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


def prepare_jax(*, several: bool = False) -> None:
  """What JAX reads from the environment; set before it is loaded.

  The compile cache lies beside the results. Where XLA is told to make several
  devices of one CPU, or several processes bring one each, its thread pool gets
  enough threads: a collective operation keeps the thread that runs it until all
  devices have come to it. With as many threads as cores, all of them may wait
  so while what they wait for is queued behind them, and XLA ends the process.

  Args:
    several: Whether this is one of several processes.
  """
  cache = pathlib.Path(".cache/jax").absolute()
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  devices = _host_devices()
  if devices > 1 or several:
    threads = max(os.cpu_count() or 1, _THREADS_PER_DEVICE * devices)
    os.environ.setdefault("NPROC", str(threads))


def _host_devices() -> int:
  """How many devices XLA is told to make of the CPU; 1 if nothing is said."""
  given = [os.environ.get("JAX_NUM_CPU_DEVICES", "")]
  for flag in os.environ.get("XLA_FLAGS", "").split():
    name, _, value = flag.partition("=")
    if name == "--xla_force_host_platform_device_count":
      given.append(value)
  return max([1, *(int(x) for x in given if x.isdecimal())])


def add_experiment(parser: argparse.ArgumentParser) -> None:
  """Adds the argument that names an experiment to a command."""
  parser.add_argument(
    "experiment", nargs="?", help="name of an experiment, such as "
    "household_steppo, or a file that defines CONFIG; with --help behind it, "
    "lists the options that KEY=VALUE can set",
  )  # fmt: skip


def experiment_lines(kind: str, width: int | None = None) -> str:
  """The experiments of one kind with what each is, for a terminal.

  Args:
    kind: A key of `training.experiments.KINDS`.
    width: Columns; None for those of the terminal.
  """
  from steppo_jax.training import experiments

  found = experiments.listing(kind)
  width = width or min(shutil.get_terminal_size().columns, 100)
  names = max([len(one.name) for one in found], default=0)
  # Where both do not fit side by side, what it is stands below the name.
  beside = names + 4 + 36 <= width
  indent = " " * (names + 4 if beside else 6)
  lines = []
  for one in found:
    text = textwrap.wrap(one.about, width - len(indent)) or [""]
    first = (
      f"  {one.name:{names}}  {text.pop(0)}" if beside else f"  {one.name}"
    )
    lines += [first.rstrip(), *(indent + line for line in text)]
  return "\n".join(lines)


class ListingHelp(argparse.Action):
  """The option --help of a command, with its experiments below.

  The files are read when help is asked for, not for every command.

  Args:
    kind: See `experiment_lines`; by keyword, as argparse gives it.
  """

  def __init__(self, option_strings, dest, kind):
    super().__init__(
      option_strings, dest, nargs=0, default=argparse.SUPPRESS,
      help="show this help message and exit",
    )  # fmt: skip
    self.kind = kind

  def __call__(self, parser, namespace, values, option_string=None):
    print_help(parser, self.kind)
    parser.exit()


def print_help(parser: argparse.ArgumentParser, kind: str) -> None:
  """Prints a command's help, and the experiments that it takes."""
  print(f"{parser.format_help()}\nexperiments:\n{experiment_lines(kind)}")


def options(args, rest):
  """The experiment's options with the assignments applied.

  Raises:
    SystemExit: there is no experiment, or help was asked for and is printed.
    ValueError: the file or an assignment does not fit.
  """
  if args.experiment is None:
    if not {"-h", "--help"} & set(rest):
      args.parser.error(
        "name an experiment; `python -m steppo_jax experiments` lists them"
      )
    print_help(args.parser, "CONFIG")
    raise SystemExit(0)
  prepare_jax()
  from steppo_jax.training import config

  name = f"{args.command} {args.experiment}"
  return config.override(
    config.load(args.experiment), rest, f"python -m steppo_jax {name}"
  )
