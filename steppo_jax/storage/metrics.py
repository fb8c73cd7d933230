"""Metrics of a run: weighted means, a JSONL file, and what shows them.

A number that is not finite (a mean over nothing, an overflow) is written as
`null`, left out of the sinks, and read back as NaN, so that every line is
JSON for every reader.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from steppo_jax import files
from steppo_jax.processes import kill_points
from steppo_jax.storage import sinks as sinks_lib
from steppo_jax.storage.options import MetricsConfig

FILE_NAME = "metrics.jsonl"


class Mean:
  """Sums (sum, weight) pairs over microbatches, hosts or updates."""

  def __init__(self):
    self._sums: dict[str, tuple[float, float]] = {}

  def add(self, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Adds one (sum, weight) pair per name.

    Args:
      pairs: sum of the quantity and the number, or weight, of what was summed;
        Python, NumPy or JAX scalars.

    Raises:
      ValueError: a value is not a pair of scalars.
    """
    for name, pair in pairs.items():
      if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(
          f"metric {name!r} must be a (sum, weight) tuple, it is {pair!r}"
        )
      total, weight = self._sums.get(name, (0.0, 0.0))
      self._sums[name] = (
        total + float(_plain(name, pair[0])),
        weight + float(_plain(name, pair[1])),
      )

  def result(self) -> dict[str, float]:
    """Returns sum / weight per name, NaN where the weight is zero."""
    return {
      name: total / weight if weight else math.nan
      for name, (total, weight) in self._sums.items()
    }


def _plain(name: str, value: Any) -> Any:
  """Returns a Python bool, int, float, str or None."""
  if value is None or isinstance(value, bool | int | float | str):
    return value
  array = np.asarray(value)
  if array.size != 1 or array.dtype.kind in "OSU":
    raise ValueError(
      f"metric {name!r} must be one number or a string, it is of type "
      f"{type(value).__name__} and shape {array.shape}"
    )
  if array.dtype.kind in "biu":
    return array.item()
  return float(array.reshape(()))


def _is_finite(value: Any) -> bool:
  return not isinstance(value, float) or math.isfinite(value)


class MetricsWriter:
  """Appends metrics of updates to a run folder.

  One line of `metrics.jsonl` per call, handed to the system in one write, and
  the same numbers to the sinks, such as TensorBoard events under
  `tensorboard/`. A line cut by a kill is tolerated by `read_jsonl`. Once a sink
  has failed, lines have a `sinks/failures`, the steps that sinks did not take.
  """

  def __init__(
    self,
    run_dir: str | os.PathLike | None,
    *,
    resumed: int | None = None,
    sinks: MetricsConfig | None = None,
    options: Mapping[str, Any] | None = None,
  ):
    """Opens the files of a run.

    Args:
      run_dir: folder of the run, made when missing; None writes nothing, as
        all processes of a run but the first do.
      resumed: update whose checkpoint the run goes on from; lines of later
        updates, which will be made again, are removed. None for a new run.
      sinks: Programs that get the numbers too; None for TensorBoard.
      options: Of the run, by their whole names, which some of them show.

    Raises:
      ValueError: a new run would write behind the lines of another one, or a
        sink is not installed.
    """
    self._file = None
    if run_dir is None:
      return
    run_dir = pathlib.Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / FILE_NAME
    if path.exists() and path.stat().st_size:
      if resumed is None:
        raise ValueError(
          f"{path} already holds metrics; resume that run or choose another "
          "run folder"
        )
      _cut_after(path, resumed)
    self._sinks = sinks_lib.Sinks(
      run_dir, sinks or MetricsConfig(), resumed=resumed, options=options or {}
    )
    self._file = open(path, "ab", buffering=0)  # noqa: SIM115

  def write(self, update: int, values: Mapping[str, Any]) -> None:
    """Writes one line, `{"update": update, **values}`.

    Raises:
      ValueError: a value is neither one number nor a string.
    """
    plain = {name: _plain(name, value) for name, value in values.items()}
    if self._file is not None and self._sinks.failures:
      plain["sinks/failures"] = self._sinks.failures.total()
    line = {"update": int(update)} | {
      name: value if _is_finite(value) else None
      for name, value in plain.items()
    }
    if self._file is None:
      return
    kill_points.passed("metrics: before a line")
    text = json.dumps(line, allow_nan=False).encode() + b"\n"
    files.write_all(self._file, text)
    kill_points.passed("metrics: a line")
    shown = {
      name: float(value)
      for name, value in plain.items()
      if isinstance(value, int | float) and _is_finite(value)
    }
    self._sinks.write(int(update), shown)

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      self._sinks.close()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _cut_after(path: pathlib.Path, update: int) -> None:
  """Keeps the lines up to an update; another file takes the name at once."""
  kept = [line for line in _read_lines(path) if line["update"] <= update]
  files.replace(path, "".join(json.dumps(line) + "\n" for line in kept))


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  lines = []
  try:
    for where, line in files.read_lines(path, cut="last"):
      if not isinstance(line.get("update"), int):
        raise ValueError(f"{where}: no update number")
      lines.append(line)
  except ValueError as error:
    raise ValueError(
      f"{error}; remove it, or choose another run folder"
    ) from error
  return lines


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of a metrics file, in order.

  Numbers that were not finite come back as NaN. A last line that a kill cut
  short is left out.

  Args:
    path: a `metrics.jsonl` file or the run folder that holds it.

  Raises:
    ValueError: there is no such file, or a line other than the last is broken.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / FILE_NAME
  if not path.is_file():
    raise ValueError(f"no metrics at {path}; give the folder of a run")
  return [
    {name: math.nan if value is None else value for name, value in line.items()}
    for line in _read_lines(path)
  ]
