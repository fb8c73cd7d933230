"""Prints what an evaluation found, and the table of algorithms."""

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
  """Prints the rows of `algorithms.table.ALGORITHMS`."""
  table = rich.table.Table(title="algorithms")
  for name in ("name", "estimator", "ratio", "clip", "loss mean", "critic",
               "needs", "evidence", "source"):  # fmt: skip
    table.add_column(name)
  for name, row in algorithms_table.ALGORITHMS.items():
    pooled = f"step^{row.power:g}" + (" centred" if row.center else "")
    table.add_row(
      name,
      row.estimator,
      "token" if row.ratio == "token" else pooled,
      f"{row.clip_low:g}/{row.clip_high:g}",
      row.aggregation,
      row.critic or "",
      " ".join(row.needs),
      row.evidence,
      row.source,
    )
  rich.console.Console().print(table)
