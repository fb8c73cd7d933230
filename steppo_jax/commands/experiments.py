"""The command `experiments`: lists them, shows one, copies one out."""

import argparse
import pathlib
from collections.abc import Callable

from steppo_jax.commands import terminal


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """
  shown = add(
    "experiments", _run, "list the experiments, show one, or copy one out"
  )
  shown.add_argument("name", nargs="?", help="experiment whose file is printed")
  shown.add_argument(
    "--copy", nargs="?", const="", metavar="FILE",
    help="copy it, and what it reads, into files that you can change; "
    "to experiments/NAME.py if no FILE is given",
  )  # fmt: skip


def _run(args, _) -> None:
  from steppo_jax.training import experiments

  if args.name is None:
    if args.copy is not None:
      raise ValueError("name the experiment to copy: experiments NAME --copy")
    for kind, what in experiments.KINDS.items():
      print(f"{what}:\n{terminal.experiment_lines(kind)}\n")
    print("`experiments NAME` shows one, `experiments NAME --copy` copies it.")
    return
  one = experiments.get(args.name)
  if args.copy is None:
    print(one.file.read_text(), end="")
    return
  target = pathlib.Path(args.copy or f"experiments/{one.name}.py")
  if target.suffix != ".py":
    raise ValueError(f"--copy {target} is not the name of a Python file")
  for place in experiments.copy(one, target):
    terminal.say(f"written: {place}")
  print(target)
