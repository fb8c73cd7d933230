"""Programs that show the numbers of a run: TensorBoard and three others.

`metrics.jsonl` is the record of a run, and a sink is a copy for people to look
at. Whatever goes wrong in one is therefore counted and told once, and the run
goes on. All sinks get the same numbers under the same names, with the number of
updates done as their step.

A run that goes on from a checkpoint does some updates again, to the same
numbers. TensorBoard forgets its own from there on. The others cannot, so that
`sinks.json` in the run's folder keeps the last step that each was given, and
the name that it gave the run: those steps are left out the second time. It is
written before the numbers go out, so that a kill loses a step rather than
showing it twice.
"""

import collections
import contextlib
import importlib.util
import io
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from steppo_jax import files
from steppo_jax.storage.options import MetricsConfig

FILE_NAME = "sinks.json"

_log = logging.getLogger(__name__)


class Sink(Protocol):
  """One program. Any method may raise whatever that program raises."""

  def write(self, update: int, values: Mapping[str, float]) -> None:
    """Takes the finite numbers of an update."""

  def close(self) -> None:
    """Returns when everything has been handed on."""


class _TensorBoard:
  def __init__(self, run):
    import tensorboardX  # Slow to import, and of no use to readers.

    self._board = tensorboardX.SummaryWriter(
      str(run.folder / "tensorboard"), purge_step=run.purged
    )

  def write(self, update, values):
    for name, value in values.items():
      self._board.add_scalar(name, value, update)
    self._board.flush()

  def close(self):
    self._board.close()


class _WandB:
  def __init__(self, run):
    import wandb

    self._run = wandb.init(
      project=run.config.project,
      name=run.name,
      id=run.id,
      dir=str(run.folder),
      config=run.options,
      mode=run.config.wandb,
      resume="allow",
      # The run writes to the terminal itself.
      settings=wandb.Settings(silent=True, console="off"),
    )

  def write(self, update, values):
    self._run.log(dict(values), step=update)

  def close(self):
    self._run.finish()


# Parameters that MLflow takes at once.
_MLFLOW_BATCH = 100


class _MLflow:
  def __init__(self, run):
    import mlflow
    from mlflow import entities

    self._metric = entities.Metric
    self._client = mlflow.MlflowClient(tracking_uri=run.config.mlflow)
    experiment = self._client.get_experiment_by_name(run.config.project)
    number = (
      self._client.create_experiment(run.config.project)
      if experiment is None
      else experiment.experiment_id
    )
    found = self._client.search_runs([number], f"tags.steppo_jax = '{run.id}'")
    if found:
      self._id = found[0].info.run_id
      self._client.set_terminated(self._id, "RUNNING")
      return
    made = self._client.create_run(
      number, run_name=run.name, tags={"steppo_jax": run.id}
    )
    self._id = made.info.run_id
    params = [entities.Param(*one) for one in run.options.items()]
    for first in range(0, len(params), _MLFLOW_BATCH):
      part = params[first : first + _MLFLOW_BATCH]
      self._client.log_batch(self._id, params=part)

  def write(self, update, values):
    now = int(1000 * time.time())
    metrics = [
      self._metric(_plain_name(name), value, now, update)
      for name, value in values.items()
    ]
    self._client.log_batch(self._id, metrics=metrics)

  def close(self):
    self._client.set_terminated(self._id)


def _plain_name(name: str) -> str:
  """What MLflow takes for a name; ours is, unless an environment's is not."""
  return re.sub(r"[^/\w.\- :]", "_", name)


class _Trackio:
  def __init__(self, run):
    import trackio

    self._trackio = trackio
    # It goes on with a run by its name, which others in its folder may have.
    with _quiet():
      self._run = trackio.init(
        project=run.config.project,
        name=f"{run.name}-{run.id}",
        config=run.options,
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
      )

  def write(self, update, values):
    self._run.log(dict(values), step=update)

  def close(self):
    with _quiet():
      self._trackio.finish()  # That of the run is called again at the exit.


def _quiet():
  """Standard output is for what a command was asked for."""
  return contextlib.redirect_stdout(io.StringIO())


# By name of the option: what makes the sink, and the package that it needs.
_SINKS: dict[str, tuple[Callable[[Any], Sink], str]] = {
  "tensorboard": (_TensorBoard, "tensorboardX"),
  "wandb": (_WandB, "wandb"),
  "mlflow": (_MLflow, "mlflow"),
  "trackio": (_Trackio, "trackio"),
}


class _Run:
  """What a sink is told of the run.

  Attributes:
    folder: The run's folder.
    config: The options of sinks.
    options: The options of the run by their whole names, as text.
    name: The run's name.
    id: What a sink that goes on knows the run by.
    purged: First step that is written anew, None for a run that is new.
  """

  def __init__(self, folder, config, options, id_, purged):
    self.folder, self.config, self.options = folder, config, options
    self.name, self.id = folder.resolve().name, id_
    self.purged = purged


def check(config: MetricsConfig) -> None:
  """Refuses sinks that do not exist or whose packages are missing.

  Raises:
    ValueError: it says what to install.
  """
  for name in config.sinks:
    if name not in _SINKS:
      raise ValueError(f"metrics.sinks={name} is none of {', '.join(_SINKS)}")
    package = _SINKS[name][1]
    found = importlib.util.find_spec(package)
    # Weights & Biases leaves folders of its name behind, which are no package.
    if found is None or found.origin is None:
      raise ValueError(
        f"metrics.sinks={name} needs the package {package}: pip install "
        f"'steppo_jax[{name}]', or leave it out"
      )


class Sinks:
  """The sinks of a run, none of which can stop it.

  Attributes:
    failures: Steps that each sink did not take, by its name.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    config: MetricsConfig,
    *,
    resumed: int | None,
    options: Mapping[str, Any],
  ):
    """Begins with each sink, or goes on.

    Args:
      folder: The run's folder.
      config: Which sinks.
      resumed: Update whose checkpoint the run goes on from, None for a new run.
      options: The options of the run by their whole names.

    Raises:
      ValueError: see `check`.
    """
    check(config)
    folder = pathlib.Path(folder)
    self._file = folder / FILE_NAME
    self.failures: collections.Counter[str] = collections.Counter()
    self._state = {} if resumed is None else self._read()
    self._state.setdefault("id", os.urandom(4).hex())
    if set(config.sinks) - {"tensorboard"}:
      self._save()  # Before they have heard of a run that could be forgotten.
    told = {name: str(value)[:500] for name, value in options.items()}
    purged = None if resumed is None else resumed + 1
    run = _Run(folder, config, told, self._state["id"], purged)
    self._sinks: dict[str, Sink] = {}
    for name in dict.fromkeys(config.sinks):
      try:
        self._sinks[name] = _SINKS[name][0](run)
      except Exception as error:  # They raise whatever they will.
        self._failed(name, error)

  def _read(self) -> dict[str, Any]:
    """What was written last; nothing where that cannot be read."""
    if not self._file.is_file():
      return {}
    try:
      return files.read_object(self._file)
    except (OSError, ValueError) as error:
      _log.warning("%s: sinks show some steps twice", error)
      return {}

  def _save(self) -> None:
    try:
      files.replace(self._file, json.dumps(self._state) + "\n")
    except OSError as error:
      self._failed(FILE_NAME, error)

  def write(self, update: int, values: Mapping[str, float]) -> None:
    """Gives the numbers of an update to all that have not had them.

    Args:
      update: Number of updates done.
      values: Finite numbers by name.
    """
    marks = self._state.setdefault("last", {})
    # TensorBoard has forgotten what comes again; see `purge_step`.
    fresh = [
      name
      for name in self._sinks
      if name == "tensorboard" or update > marks.get(name, -1)
    ]
    if any(name != "tensorboard" for name in fresh):
      marks |= {name: update for name in fresh}
      self._save()
    for name in fresh:
      try:
        self._sinks[name].write(update, values)
      except Exception as error:
        self._failed(name, error)

  def _failed(self, name: str, error: Exception) -> None:
    self.failures[name] += 1
    if self.failures[name] == 1:
      _log.warning(
        "metrics sink %s failed (%s: %s): the run goes on, metrics.jsonl has "
        "everything, and further failures are only counted",
        *(name, type(error).__name__, error),
      )

  def close(self) -> None:
    """Closes all sinks, and tells of those that failed more than once."""
    for name, sink in self._sinks.items():
      try:
        sink.close()
      except Exception as error:
        self._failed(name, error)
    for name, count in self.failures.items():
      if count > 1:
        _log.warning("metrics sink %s failed %d times", name, count)
