"""Prints what an evaluation found, and the algorithms."""

import dataclasses
import inspect
import shutil
import textwrap

import rich.box
import rich.console
import rich.table

from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.reports import evaluation as evaluation_lib
from steppo_jax.reports import panel


def evaluation(found: evaluation_lib.Evaluation) -> None:
  """Prints tables, panels and what must be known to compare the numbers."""
  out = rich.console.Console()
  facts = found.facts
  how = f"temperature {facts['temperature']:g}"
  if facts["temperature"] == 0:
    how = "greedy"
  if facts["samples"] > 1:
    how += f", {facts['samples']} episodes a task"
  for split, table in found.tables.items():
    out.print(
      f"{facts['env']} {split}, {facts['tasks'][split]} tasks, panel "
      f"{facts['panels'][split]}, at most {facts['max_steps']} steps, {how}",
      markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    out.print(_numbers(table[panel.ALL]))
    if len(table) > 1:
      out.print(_families(table))
    if found.lengths[split]:
      out.print(_lengths(found.lengths[split]))
  out.print("Intervals are 95 %, over tasks.", highlight=False)
  for cause, own in found.failures().items():
    out.print(
      f"{own['count']} of {len(found.episodes)} episodes failed with {cause}, "
      f"the first with {own['first']}",
      style="red", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
  for note in found.notes:
    out.print(note, markup=False, highlight=False, soft_wrap=True)


def _cell(number: panel.Estimate | None) -> str:
  if number is None:
    return ""
  # A bracket alone would be markup.
  return rf"{number.mean:.3f} \[{number.low:.3f}, {number.high:.3f}]"


def _mean(number: panel.Estimate | None) -> str:
  return "" if number is None else f"{number.mean:.2f}"


def _table(*columns: str) -> rich.table.Table:
  table = rich.table.Table(box=rich.box.SIMPLE)
  for column in columns:
    justify = "right" if column else "left"
    table.add_column(column, justify=justify, no_wrap=True)
  return table


def _numbers(row) -> rich.table.Table:
  table = _table("", "all tasks")
  for name, number in row.items():
    table.add_row(name, _cell(number))
  return table


def _families(tables) -> rich.table.Table:
  table = _table("", "tasks", "success", "steps", "steps / golden")
  for family, row in tables.items():
    if family != panel.ALL:
      table.add_row(
        family,
        str(row["success"].tasks),
        _cell(row["success"]),
        _mean(row.get("steps")),
        _mean(row.get("length_over_golden")),
      )
  return table


def _lengths(lengths) -> rich.table.Table:
  table = _table("golden steps", "tasks", "success", "steps", "steps when won")
  for bin_ in lengths:
    name = str(bin_.shortest)
    if bin_.longest > bin_.shortest:
      name += f"-{bin_.longest}"
    table.add_row(
      name,
      str(bin_.tasks),
      _cell(bin_.success),
      _mean(bin_.steps),
      _cell(bin_.steps_won),
    )
  return table


def algorithm_table() -> None:
  """Prints the rows of `algorithms.table.ALGORITHMS`, a line each.

  Names are whole, and no line is longer than the terminal, or 80 columns.
  """
  wide = min(shutil.get_terminal_size().columns, 80)
  rows = [("name", "ratio", "critic", "evidence", "source")]
  rows += [
    (name, _ratio(row), row.critic or "-", row.evidence, row.source)
    for name, row in algorithms_table.ALGORITHMS.items()
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  # Only a source can be too long: it goes on below, all of it where the rest
  # of the line leaves no room.
  before = sum(widths[:-1]) + 2 * len(widths) - 2
  room = wide - before >= 20
  below = " " * (before if room else 4)
  for row in rows:
    cells = [cell.ljust(n) for cell, n in zip(row, widths, strict=True)]
    if not room:
      print("  ".join(cells[:-1]).rstrip())
      cells = [below + row[-1]]
    line = "  ".join(cells).rstrip()
    print(textwrap.fill(line, wide, subsequent_indent=below))
  for name, why in algorithms_table.SLOTS.items():
    print(textwrap.fill(f"{name}: a slot without a row. {why}", wide - 1))
  print("\n`algorithms NAME` tells all of one row.")


def _ratio(row: algorithms_table.Algorithm) -> str:
  pooled = {0: "product", 0.5: "root", 1: "mean"}.get(row.power, row.power)
  return "token" if row.ratio == "token" else f"step {pooled}"


def algorithm(name: str) -> None:
  """Prints one row: its source, what it needs, its constants, its credit.

  Raises:
    ValueError: there is no such row.
  """
  # The estimators load JAX, which the table does without.
  from steppo_jax.algorithms import estimators

  row = algorithms_table.get(name)
  facts = {
    "source": row.source,
    "evidence": f"{row.evidence}: {algorithms_table.EVIDENCE[row.evidence]}",
    "needs": ", ".join(sorted(row.wants)) or "nothing else",
    "ratio": _ratio(row),
    "docs": f"docs/algorithms.md, section {name}",
  }
  shown = {*facts, "estimator", "options"}
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    if field.name not in shown and value != field.default:
      facts[field.name] = str(value)
  facts |= {option: str(value) for option, value in row.options}
  wide = max(map(len, facts)) + 2
  print(name)
  for key, value in facts.items():
    lead = f"  {key:{wide}}"
    print(
      textwrap.fill(
        value, 79, initial_indent=lead, subsequent_indent=" " * len(lead)
      )
    )
  print(f"\ncredit: algorithms.estimators.{row.estimator}\n")
  told = inspect.getdoc(getattr(estimators, row.estimator))
  print(textwrap.indent(told, "  "))
