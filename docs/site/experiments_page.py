"""The experiments with what their docstrings say of them."""

import ast
import pathlib


def table(folder: pathlib.Path) -> str:
  """A section that lists every experiment with the first line on it."""
  lines = ["", "## What each file says of itself", ""]
  lines += ["| experiment | what it is |", "|---|---|"]
  for file in [
    *sorted(folder.glob("*.py")),
    *sorted(folder.glob("compare/*.py")),
  ]:
    told = ast.get_docstring(ast.parse(file.read_text())) or ""
    first = " ".join(told.partition("\n\n")[0].split())
    lines.append(f"| `{file.relative_to(folder)}` | {first} |")
  return "\n".join([*lines, ""])
