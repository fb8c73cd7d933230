"""The commands `report`, `compare` and `algorithms`: results and tables."""

import argparse
import pathlib
from collections.abc import Callable

from steppo_jax.commands import terminal


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the commands to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """
  shown = add("report", _report, "plot and summarise runs")
  shown.add_argument("runs", nargs="+", help="run folders, one a seed")
  shown.add_argument("--control", help="run folder drawn for comparison")
  shown.add_argument(
    "--markdown", metavar="FILE.md",
    help="write a report for a pull request: runs that differ in more than "
    "their seed are compared with the first",
  )  # fmt: skip
  many = add(
    "compare", _compare, "run a matrix of methods, worlds and seeds",
    add_help=False,
  )  # fmt: skip
  many.add_argument("-h", "--help", action=terminal.ListingHelp, kind="MATRIX")
  many.add_argument(
    "matrix", help="name of a comparison, such as compare/pilot, or a file "
    "that defines MATRIX",
  )  # fmt: skip
  many.add_argument("--output", help="folder; runs/compare/NAME without")
  many.add_argument(
    "--jobs", type=int, default=1, help="processes; 0 takes this one"
  )
  many.add_argument(
    "--known", nargs="*", default=(), metavar="FILE.jsonl",
    help="results whose finished runs are not run again",
  )  # fmt: skip
  table = add("algorithms", _algorithms, "print the algorithms, or one of them")
  table.add_argument("name", nargs="?", help="row of which all is told")


def _report(args, _) -> None:
  from steppo_jax.compare import cells as compare
  from steppo_jax.compare import report as compare_report
  from steppo_jax.reports import report

  if compare.is_comparison(args.runs[0]):
    summary = compare_report.report(args.runs[0])
    print(pathlib.Path(summary).read_text())
    return
  summary = report.report(
    *args.runs, control=args.control, markdown_file=args.markdown
  )
  print(pathlib.Path(summary).read_text())
  beside = "in the run folders" if args.markdown else "beside it"
  terminal.say(f"written: {summary}; figures (*.png) are {beside}")


def _compare(args, _) -> None:
  terminal.prepare_jax()
  from steppo_jax.compare import cells as compare

  def on_cell(line):
    end = line.get("error") or f"success {line.get('success', 'unknown')}"
    where = f"{line['kind']} {line['world']} {line['method']}"
    terminal.say(f"{where} seed {line['seed']} {line['status']}: {end}")

  folder = compare.compare(
    args.matrix, output=args.output, jobs=args.jobs, on_cell=on_cell,
    known=args.known,
  )  # fmt: skip
  print((folder / "summary.md").read_text())


def _algorithms(args, _) -> None:
  from steppo_jax.commands import show

  if args.name is None:
    show.algorithm_table()
  else:
    show.algorithm(args.name)
