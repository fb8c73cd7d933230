"""Writes metrics to a sink, or prints what the sink's package holds as JSON.

  metrics_sink.py write SINK FOLDER FIRST LAST RESUMED
  metrics_sink.py show SINK FOLDER

Runs where the package of one sink is installed and JAX is not.
"""

import glob
import json
import pathlib
import struct
import sys

from steppo_jax.storage import metrics
from steppo_jax.storage.options import MetricsConfig

PROJECT = "steppo tests"
# Names as a run has them, and one that an environment made up.
NAMES = ("eval/success", "rollout/error/Too late (3 s)", "minutes")


def write(sink, folder, first, last, resumed):
  where = f"sqlite:///{folder}/mlflow.db"
  with metrics.MetricsWriter(
    pathlib.Path(folder) / "run",
    resumed=None if resumed == "none" else int(resumed),
    sinks=MetricsConfig(sinks=(sink,), project=PROJECT, mlflow=where),
    options={"learner.learning_rate": 1e-6, "env.options": ("a=1",)}
    | {f"other.{i}": None for i in range(150)},
  ) as writer:
    for update in range(int(first), int(last)):
      writer.write(
        update,
        {name: update + i / 10 for i, name in enumerate(NAMES)}
        | {"none": float("nan"), "eval/panel": "abc"},
      )
  failures = writer._sinks.failures
  assert not failures, failures


def _records(path):
  """The records of a file of Weights & Biases, which is a log of LevelDB's."""
  from wandb.proto import wandb_internal_pb2

  data, at, block, payload = path.read_bytes(), 7, 32768, b""
  while at + 7 <= len(data):
    if block - at % block < 7:
      at += block - at % block
      continue
    _, length, kind = struct.unpack("<IHB", data[at : at + 7])
    payload += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # Whole, or the last part.
      yield wandb_internal_pb2.Record.FromString(payload)
      payload = b""


def show_wandb(folder):
  steps, ids = [], set()
  pattern = f"{folder}/run/wandb/offline-run-*/*.wandb"
  options = {}
  for path in sorted(glob.glob(pattern)):
    for record in _records(pathlib.Path(path)):
      kind = record.WhichOneof("record_type")
      if kind == "run":
        ids.add(record.run.run_id)
        options |= {
          one.key: json.loads(one.value_json)
          for one in record.run.config.update
        }
      if kind == "history":
        row = {
          one.key or "/".join(one.nested_key): json.loads(one.value_json)
          for one in record.history.item
        }
        steps.append([record.history.step.num, row])
  return {"runs": len(ids), "steps": steps, "options": options}


def show_mlflow(folder):
  import mlflow

  client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
  [number] = [
    e.experiment_id for e in client.search_experiments() if e.name == PROJECT
  ]
  runs = client.search_runs([number])
  steps = {}
  for run in runs:
    for name in run.data.metrics:
      for one in client.get_metric_history(run.info.run_id, name):
        steps.setdefault(one.step, []).append((name, one.value))
  return {
    "runs": len(runs),
    "status": runs[0].info.status,
    "steps": [[step, dict(found)] for step, found in sorted(steps.items())],
    "counts": [len(found) for _, found in sorted(steps.items())],
    "options": runs[0].data.params,
  }


def show_trackio(folder):
  from trackio.sqlite_storage import SQLiteStorage

  runs = SQLiteStorage.get_runs(PROJECT)
  logs = SQLiteStorage.get_logs(PROJECT, runs[0])
  return {
    "runs": len(runs),
    "steps": [[one.pop("step"), one] for one in logs],
    "options": SQLiteStorage.get_run_config(PROJECT, runs[0]),
  }


if __name__ == "__main__":
  command, sink, *rest = sys.argv[1:]
  if command == "write":
    write(sink, *rest)
  else:
    print(json.dumps(globals()[f"show_{sink}"](*rest), default=str))
