"""Pages that are made from the code: options, commands, algorithms.

What the code says once is not written down a second time: the options come from
the dataclasses and their docstrings, the commands from their parsers, the
algorithms from their table.
"""

import argparse
import dataclasses
import inspect
import re
import typing

from steppo_jax import __main__ as program
from steppo_jax.algorithms import options as algorithm_options
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.compare import matrix
from steppo_jax.training import config

_OPTIONS = """\
# Options

An experiment is a Python file that defines `CONFIG`, a record of the options
below. On the command line `key=value` behind the experiment changes one of
them, such as `learner.learning_rate=1e-4`; values of several parts have commas
between them. `--help` behind an experiment prints the same list with that
experiment's own values. A default of `None` means that the experiment, the
weights or the algorithm's row decides.
"""

_COMMANDS = """\
# Commands

All commands begin with `python -m steppo_jax`, or with `steppo-jax`, which the
installation puts on the path. A mistake in options or files ends a command with
status 2, a fault of the world with 1, and a run that was asked to stop and can
go on with 42.
"""

_CONSTANTS = """\
Each of them can be set in a run, as `algorithm.NAME=value`, except those that
say what the method is (`estimator`, `critic`, `needs`). Constants that stand at
the default of every row are left out.

| constant | value | meaning |
|---|---|---|"""


def attributes_of(kind: type) -> dict[str, str]:
  """What a docstring's section "Attributes" says of each name."""
  text = inspect.getdoc(kind) or ""
  section = re.search(r"^Attributes:\n((?:  .*\n?|\n)*)", text, re.M)
  found: dict[str, str] = {}
  name = None
  for line in section[1].splitlines() if section else ():
    start = re.match(r"  (\w+): (.*)", line)
    if start:
      name = start[1]
      found[name] = start[2]
    elif name and line.strip():
      found[name] += f" {line.strip()}"
  return found


def _cell(text: object) -> str:
  """Text in a table: bars would end the cell, stars would be emphasis."""
  escaped = re.sub(r"([|*<>_])", r"\\\1", str(text))
  # Between backticks everything but a bar is as written.
  return re.sub(
    r"`[^`]*`",
    lambda code: re.sub(r"\\([*<>_])", r"\1", code[0]),
    " ".join(escaped.split()),
  )


def _kind(annotation: object) -> str:
  """A type as a user writes values of it: "int", "a or b", "none"."""
  if typing.get_origin(annotation) is typing.Literal:
    return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
  parts = typing.get_args(annotation)
  if typing.get_origin(annotation) is tuple:
    kinds = [_kind(part) for part in parts if part is not Ellipsis]
    return f"{kinds[0]}s, a comma between" if len(parts) == 2 else "numbers"
  if parts:
    return " or ".join(_kind(part) for part in parts)
  names = {type(None): "`None`", str: "text", bool: "`True` or `False`",
           int: "whole number", float: "number"}  # fmt: skip
  return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: dataclasses.Field) -> object:
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return dataclasses.MISSING


def options_of(kind: type, prefix: str = "") -> list[str]:
  """A section for a dataclass of options, and for each that lies in it."""
  told, hints = attributes_of(kind), typing.get_type_hints(kind)
  rows, inner = [], []
  for field in dataclasses.fields(kind):
    default = _default(field)
    if dataclasses.is_dataclass(default):
      inner += options_of(type(default), f"{prefix}{field.name}.")
      continue
    shown = "needed" if default is dataclasses.MISSING else f"`{default}`"
    if default == ():
      shown = "none"
    if default == "":
      shown = "empty"
    rows.append(
      f"| `{prefix}{field.name}` | {_cell(_kind(hints[field.name]))} | "
      f"{_cell(shown)} | {_cell(told.get(field.name, ''))} |"
    )
  title = f"### `{prefix}*`" if prefix else "### Of the run itself"
  first = (inspect.getdoc(kind) or "").partition("\n\n")[0]
  table = ["| option | value | default | meaning |", "|---|---|---|---|", *rows]
  return [title, "", " ".join(first.split()), "", *table, "", *inner]


def options() -> str:
  """Every option of a run, of both kinds, and of a comparison."""
  parts = [
    _OPTIONS,
    "## Reinforcement learning (`RunConfig`)\n",
    *options_of(config.RunConfig),
    "## Supervised learning (`SupervisedRun`)\n",
    *options_of(config.SupervisedRun),
    "## Comparisons (`MATRIX`)\n",
    "A comparison is a Python file that defines `MATRIX`, a record of these.\n",
    *options_of(matrix.Matrix),
  ]
  return "\n".join(parts)


def parsers() -> dict[str, argparse.ArgumentParser]:
  """The parser of each command by its name, in the order of the help."""
  for action in program._parser()._actions:
    if isinstance(action, argparse._SubParsersAction):
      return _unnested(action.choices)
  raise AssertionError("the program has no commands")


def _unnested(choices, before="") -> dict[str, argparse.ArgumentParser]:
  """Commands, and commands of commands, by all their words."""
  found = {}
  for name, parser in choices.items():
    found[before + name] = parser
    for action in parser._actions:
      if isinstance(action, argparse._SubParsersAction):
        found |= _unnested(action.choices, f"{before}{name} ")
  return found


def commands() -> str:
  """Every command with its arguments, from the parsers."""
  lines = [_COMMANDS]
  for name, parser in parsers().items():
    lines += [f"## {name}", "", _sentence(parser.description), ""]
    lines += ["```text", parser.format_usage().strip(), "```", ""]
    for group in parser._action_groups:
      rows = [_argument(a) for a in group._group_actions if _shown(a)]
      if not rows:
        continue
      if group.description:
        lines += [_sentence(group.description), ""]
      lines += ["| argument | meaning |", "|---|---|", *rows, ""]
    if parser.epilog:
      lines += ["```text", parser.epilog.strip(), "```", ""]
  return "\n".join(lines)


def _sentence(text: str | None) -> str:
  text = _cell(text or "")
  return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _shown(action: argparse.Action) -> bool:
  hidden = argparse._HelpAction | argparse._SubParsersAction
  return action.help != argparse.SUPPRESS and not isinstance(action, hidden)


def _argument(action: argparse.Action) -> str:
  names = action.option_strings or [action.metavar or action.dest]
  value = action.metavar or action.dest.upper()
  if action.choices:
    value = "{" + ",".join(map(str, action.choices)) + "}"
  takes = action.option_strings and action.nargs != 0
  written = ", ".join(f"`{n} {value}`" if takes else f"`{n}`" for n in names)
  formatter = argparse.HelpFormatter("")
  text = formatter._expand_help(action) if action.help else ""
  return f"| {written.replace('|', chr(92) + '|')} | {_cell(text)} |"


def algorithm_page(
  name: str, section: str, curves: list[tuple[str, str]]
) -> str:
  """The page of one row of the table.

  Args:
    name: Of the row.
    section: What docs/algorithms.md says of it.
    curves: (file, text) of the plots of its learning curves.
  """
  row = algorithms_table.get(name)
  told = attributes_of(algorithms_table.Algorithm)
  constants = attributes_of(algorithm_options.AlgorithmConfig)
  lines = [f"# `{name}`", "", section.strip(), "", "## Its constants", ""]
  lines += [_CONSTANTS]
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    if field.name in ("source", "evidence", "options"):
      continue
    if value != field.default or field.name in ("discount", "lambda_"):
      meaning = _cell(told[field.name])
      lines.append(f"| `{field.name}` | `{value}` | {meaning} |")
  for option, value in row.options:
    meaning = _cell(constants.get(option, told.get(option, "")))
    lines.append(f"| `{option}` | `{value}` | {meaning} |")
  module = "steppo_jax.algorithms.estimators"
  lines += [
    "",
    f"Its credit is computed by {{py:obj}}`{row.estimator} "
    f"<{_module_of(row.estimator)}.{row.estimator}>` of `{module}`.",
    "",
    "## Learning curve",
    "",
  ]
  if not curves:
    lines += [
      "No run of this method is recorded here: what it learns is not measured.",
    ]
  for file, text in curves:
    lines += [f"![Success of `{name}` against updates]({file})", "", text, ""]
  return "\n".join(lines)


def _module_of(estimator: str) -> str:
  from steppo_jax.algorithms import estimators

  return getattr(estimators, estimator).__module__
