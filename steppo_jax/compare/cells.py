"""Runs a matrix of runs, stopped and continued at will.

The folder of a comparison holds one run folder per cell and `results.jsonl`,
one line per cell whatever became of it, which `compare.report` reads.
"""

import concurrent.futures
import dataclasses
import fcntl
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from steppo_jax import files
from steppo_jax.compare import matrix as matrix_lib
from steppo_jax.compare import report as compare_report
from steppo_jax.compare.matrix import Cell, Matrix
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics
from steppo_jax.training import train

# Numbers of the last line of metrics that the results keep.
_KEPT = ("eval/reward", "eval/invalid_share", "eval/steps", "eval/episodes",
         "eval/response_tokens", "minutes")  # fmt: skip
# Numbers that are averaged over all updates.
_AVERAGED = ("policy/clip_fraction", "policy/approx_kl", "policy/grad_norm",
             "critic/explained_variance", "rollout/success",
             "rollout/response_tokens")  # fmt: skip

OnCell = Callable[[dict[str, Any]], None]
# Lines of finished runs by the digest of their options.
Known = Mapping[str, dict[str, Any]]
_NONE: Known = types.MappingProxyType({})


def compare(
  path: str,
  *,
  output: str | os.PathLike | None,
  jobs: int,
  on_cell: OnCell,
  known: Sequence[str | os.PathLike] = (),
) -> pathlib.Path:
  """Runs every cell that is not finished yet, the search first.

  Args:
    path: File that defines MATRIX.
    output: Folder; None for runs/compare/NAME.
    jobs: Processes side by side, one cell each at a time; 0 runs the cells in
      this process, one after another.
    on_cell: Called with the line of results of each cell when it ends.
    known: Results of earlier comparisons, of this machine or another. A cell
      whose options were run to the end there is not run again.

  Returns:
    The folder, with `results.jsonl` and the report.

  Raises:
    ValueError: the file, the matrix or `jobs` are wrong. A cell that fails is a
      line of the results; the others go on.
  """
  if jobs < 0:
    raise ValueError(f"jobs={jobs} must be at least 0")
  matrix = matrix_lib.load(path)
  found = _read_known(known)
  name = pathlib.Path(path).stem
  folder = pathlib.Path(output or pathlib.Path("runs", "compare", name))
  folder.mkdir(parents=True, exist_ok=True)
  search = list(matrix_lib.search_cells(matrix))
  planned = [*search]

  def ended(_: Cell) -> None:
    write(matrix, folder, name, planned, found)

  _run_all(matrix, folder, search, jobs, ended, on_cell, found)
  chosen = choose(matrix, folder, found)
  final = list(matrix_lib.final_cells(matrix, chosen))
  planned += final
  write(matrix, folder, name, planned, found)
  _run_all(matrix, folder, final, jobs, ended, on_cell, found)
  compare_report.report(folder)
  return folder


def _read_known(paths) -> Known:
  return {
    line["options"]: line
    for path in paths
    for line in compare_report.read(path)
    if line["status"] == "done" and "options" in line
  }


def choose(matrix: Matrix, folder: pathlib.Path, known: Known = _NONE) -> dict:
  """Settings by (world, method): the best mean of the searching runs.

  A setting of which a run failed is not chosen, unless all have failed: then
  the first is, so that the failure is seen with the reported seeds too.
  """
  both = [(w.name, m.name) for w in matrix.worlds for m in matrix.methods]
  if matrix.search is None:
    return dict.fromkeys(both, matrix_lib.AS_WRITTEN)
  scores: dict[tuple, dict[tuple, list[float]]] = {key: {} for key in both}
  for cell in matrix_lib.search_cells(matrix):
    line = result(matrix, folder, cell, known)
    value = line["success"] if line["status"] == "done" else -math.inf
    by_setting = scores[cell.world, cell.method]
    by_setting.setdefault(cell.settings, []).append(value)
  # Of equals the first: the order of the search is that of the file.
  return {
    key: max(found, key=lambda s: sum(found[s]))
    for key, found in scores.items()
  }


def _run_all(
  matrix, folder, cells: Sequence[Cell], jobs, ended, on_cell, known
):
  def one(cell):
    if matrix_lib.digest(matrix, cell) not in known:
      run_cell(matrix, folder, cell, in_process=jobs == 0)
    return cell

  def report(cell):
    ended(cell)
    on_cell(result(matrix, folder, cell, known))

  if jobs == 0:
    for cell in cells:
      report(one(cell))
    return
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for done in concurrent.futures.as_completed(pool.submit(one, c)
                                                for c in cells):  # fmt: skip
      report(done.result())


def run_cell(
  matrix: Matrix, folder: pathlib.Path, cell: Cell, *, in_process: bool
) -> None:
  """Runs a cell, or goes on with it; nothing if it is finished.

  What it says is beside its run folder, in NAME.log, and what ended it in
  NAME.error if it failed.
  """
  path = folder / cell.folder
  path.parent.mkdir(parents=True, exist_ok=True)
  log, error = (path.with_name(f"{path.name}.{x}") for x in ("log", "error"))
  run = functools.partial(_here, matrix, cell, path)
  if not in_process:
    run = functools.partial(_elsewhere, matrix, cell, path, log)
  with open(log, "a") as file:
    # The process inherits the lock: one that outlives a killed comparison is
    # waited for, not joined by a second one.
    fcntl.flock(file, fcntl.LOCK_EX)
    error.unlink(missing_ok=True)
    try:
      # Of a changed matrix, what is there would be the result of another cell.
      options = _open(matrix, cell, path)
      fault = "" if _finished(path) else run(options, file)
    except ValueError as mistake:
      fault = str(mistake)
  if fault:
    error.write_text(fault + "\n")


def _command(matrix: Matrix, cell: Cell, path: pathlib.Path) -> list[str]:
  return ["train", matrix.base, *cell.assignments, f"seed={cell.seed}",
          f"run_dir={path}"]  # fmt: skip


def _open(matrix: Matrix, cell: Cell, path: pathlib.Path):
  """The options of a cell, whose folder is made, or checked to be its own."""
  command = _command(matrix, cell, path)
  options = matrix_lib.parse(matrix.base, cell.assignments)
  options = dataclasses.replace(options, seed=cell.seed, run_dir=str(path))
  typed = "python -m steppo_jax " + " ".join(command)
  run_folder.open_folder(options, "cell", typed)
  return options


def _elsewhere(matrix, cell, path, log, options, file) -> str:
  """Runs in a process of its own; returns what went wrong, "" if nothing."""
  del options  # The process reads them again.
  start = log.stat().st_size
  done = subprocess.run(
    [sys.executable, "-m", "steppo_jax", *_command(matrix, cell, path)],
    stdin=subprocess.DEVNULL,
    stdout=file,
    stderr=subprocess.STDOUT,
    pass_fds=(file.fileno(),),
    check=False,
  )
  if done.returncode == 0:
    return ""
  said = log.read_bytes()[start:].decode(errors="replace").strip()
  last = said.splitlines()[-1] if said else "nothing was said"
  return f"status {done.returncode}: {last}"


def _here(matrix, cell, path, options, file) -> str:
  del matrix, cell
  nothing = lambda *_: None
  try:
    train.train(options, path, on_update=nothing, on_episode=nothing)
  except Exception as error:
    # Whatever it is, it ends this cell and is reported with it.
    file.write(traceback.format_exc())
    return f"{type(error).__name__}: {error}"
  return ""


def _finished(path: pathlib.Path) -> bool:
  """Whether a run has ended: the policy is written last."""
  return (path / run_folder.POLICY_NAME).is_file()


def result(
  matrix: Matrix, folder: pathlib.Path, cell: Cell, known: Known = _NONE
) -> dict[str, Any]:
  """The line of a cell: its settings, its curve and what became of it.

  `status` is "done", "failed" or "unfinished" (not begun or stopped); `curve`
  holds [update, success] pairs as far as it got.
  """
  line = {
    "kind": cell.kind,
    "world": cell.world,
    "method": cell.method,
    "seed": cell.seed,
    "settings": dict(cell.settings),
    "assignments": list(cell.assignments),
    "base": pathlib.Path(matrix.base).name,
    "options": matrix_lib.digest(matrix, cell),
  }
  if line["options"] in known:
    # By another name perhaps, but the same run.
    return known[line["options"]] | line
  path = folder / cell.folder
  error = path.with_name(f"{path.name}.error")
  lines, facts = [], {}
  if (path / metrics.FILE_NAME).is_file():
    lines = metrics.read_jsonl(path)
    facts = json.loads((path / run_folder.FACTS_NAME).read_text())
  evaluated = [x for x in lines if "eval/success" in x]
  line |= {
    "status": "unfinished",
    "updates": lines[-1]["update"] if lines else 0,
    "curve": [[x["update"], x["eval/success"]] for x in evaluated],
  }
  if error.is_file():
    line |= {"status": "failed", "error": error.read_text().strip()}
  elif _finished(path):
    line |= {"status": "done"}
  if evaluated:
    line |= {"success": evaluated[-1]["eval/success"]}
    line |= {k: _number(evaluated[-1].get(k)) for k in _KEPT}
  for name in _AVERAGED:
    values = [x[name] for x in lines if not math.isnan(x.get(name, math.nan))]
    if values:
      line[f"mean/{name}"] = _number(sum(values) / len(values))
  return line | {k: facts[k] for k in ("commit", "date", "hardware") if facts}


def _number(value):
  return None if value is None or math.isnan(value) else round(value, 6)


def write(
  matrix: Matrix,
  folder: pathlib.Path,
  name: str,
  cells: Iterable[Cell],
  known: Known = _NONE,
) -> None:
  """Writes `results.jsonl` anew; another file takes its name at once."""
  lines = [
    result(matrix, folder, cell, known) | {"matrix": name} for cell in cells
  ]
  files.replace(
    folder / compare_report.RESULTS_NAME,
    "".join(json.dumps(line) + "\n" for line in lines),
  )


def is_comparison(path: str | os.PathLike) -> bool:
  """Whether it is a folder of a comparison, or its results."""
  path = pathlib.Path(path)
  if path.suffix == ".jsonl":
    return path.is_file()
  return (path / compare_report.RESULTS_NAME).is_file()
