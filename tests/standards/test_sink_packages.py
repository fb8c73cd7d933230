"""What Weights & Biases, MLflow and trackio hold of a run that was resumed."""

import json
import os
import pathlib
import subprocess

import pytest

pytestmark = pytest.mark.standards

PROGRAM = pathlib.Path(__file__).parent / "metrics_sink.py"
NAMES = ("eval/success", "rollout/error/Too late (3 s)", "minutes")


def _run(sink, folder, *args):
  [python] = (pathlib.Path(os.environ["STEPPO_STANDARDS"]) / "sinks").glob(
    f"{sink}-*/bin/python"
  )
  own = {
    "PYTHONPATH": str(PROGRAM.parents[2]), "HOME": str(folder),
    "TRACKIO_DIR": str(folder / "trackio"), "WANDB_SILENT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1",
  }  # fmt: skip
  command, *rest = args
  ran = subprocess.run(
    [str(python), str(PROGRAM), command, sink, str(folder), *rest],
    capture_output=True, text=True, timeout=600, cwd=folder,
    env=os.environ | own,
  )  # fmt: skip
  assert ran.returncode == 0, ran.stderr[-3000:]
  return ran.stdout


@pytest.mark.parametrize("sink", ["wandb", "mlflow", "trackio"])
def test_a_resumed_run_is_one_run_with_each_step_once(tmp_path, sink):
  """The second session does updates 2 and 3 again, from checkpoint 1 on."""
  assert _run(sink, tmp_path, "write", "0", "4", "none") == ""
  assert _run(sink, tmp_path, "write", "2", "6", "1") == ""
  found = json.loads(_run(sink, tmp_path, "show").splitlines()[-1])
  assert found["runs"] == 1
  plain = lambda name: name
  if sink == "mlflow":
    plain = lambda name: name.replace("(", "_").replace(")", "_")
    assert found["status"] == "FINISHED"
    assert found["counts"] == [len(NAMES)] * 6
  assert [step for step, _ in found["steps"]] == list(range(6))
  for step, row in found["steps"]:
    shown = {name: row[plain(name)] for name in NAMES}
    assert shown == pytest.approx(
      {name: step + i / 10 for i, name in enumerate(NAMES)}
    )
    assert not {"none", "eval/panel"} & set(row)
  assert found["options"]["learner.learning_rate"] == "1e-06"
  assert found["options"]["other.149"] == "None"
