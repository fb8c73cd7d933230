"""The quickstart notebook, run as it is but for its parameters."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "notebooks/steppo_quickstart.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def cells():
  """(kind, source, tags) of every cell of the generated notebook."""
  return [
    (c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", []))
    for c in json.loads(NOTEBOOK.read_text())["cells"]
  ]


def small(folder, *, device_flags, **changes):
  """Runs the notebook's code cells, parameters replaced; the process."""
  parameters = {
    "REPOSITORY": str(ROOT), "RUN": str(folder / "run"), "UPDATES": 2,
    "KILL_AT": 1, "EPISODES": 8, "EVALUATE_EVERY": 2, "EVALUATION_EPISODES": 4,
    "OPTIONS": [
      "checkpoint_every=1", "learner.num_minibatches=1", "sampler.num_slots=1",
      "sampler.prefill_lengths=64", "rollout.max_steps=5",
      "rollout.max_tokens=128", "packing.row_length=128",
    ],
  } | changes  # fmt: skip
  code = []
  for kind, source, tags in cells():
    if kind == "code":
      code.append(source)
      if "parameters" in tags:
        code += [f"{k} = {v!r}" for k, v in parameters.items()]
  file = folder / "notebook.py"
  file.write_text("\n".join(code))
  return subprocess.run(
    [sys.executable, file], cwd=folder, text=True, capture_output=True,
    check=False, timeout=1800,
    # The last of two equal flags holds.
    env=os.environ | {
      "MPLBACKEND": "Agg",
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {device_flags}",
    },
  )  # fmt: skip


def test_the_notebook_is_generated_from_the_script():
  text = SCRIPT.read_text().split("# ---\n", 2)[2]
  parts = re.split(r"^# %%(.*)\n", text, flags=re.M)[1:]
  want = []
  for head, body in zip(parts[::2], parts[1::2], strict=True):
    if "[markdown]" in head:
      lines = body.strip().splitlines()
      body = "\n".join(re.sub(r"^# ?", "", line) for line in lines)
      want.append(("markdown", body, []))
    else:
      tags = ["parameters"] if "parameters" in head else []
      want.append(("code", body.strip(), tags))
  assert cells() == want, "make notebook"
  for cell in json.loads(NOTEBOOK.read_text())["cells"]:
    assert not cell.get("outputs")


def test_the_notebook_takes_no_device_before_its_trainings_have_ended():
  """A TPU belongs to one process: the training would wait, or go without."""
  code = [source for kind, source, _ in cells() if kind == "code"]
  last = max(n for n, source in enumerate(code) if "train()" in source)
  before = "\n".join(code[: last + 1])
  assert "import jax" in "".join(code[last + 1 :])
  uses = r"^\s*(import|from) jax\b|^[^\"\n]*\bjax\.\w"
  assert re.findall(uses, before, re.M) == []


@pytest.mark.slow
def test_it_trains_is_killed_goes_on_and_plots(tmp_path):
  found = small(
    tmp_path, device_flags="--xla_force_host_platform_device_count=1"
  )
  assert found.returncode == 0, found.stderr[-3000:]
  assert "killed after update 1" in found.stdout
  assert "1 updates before the kill, 2 now, none twice" in found.stdout
  assert "devices: 1 cpu" in (tmp_path / "run.log").read_text()
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["update"] for line in lines] == [0, 1, 2]
  for name in ("success", "advantages"):
    assert (tmp_path / f"run/{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_training_that_fails_shows_its_own_words(tmp_path):
  found = small(
    tmp_path, device_flags="", KILL_AT=None, UPDATES=0, EVALUATION_EPISODES=1
  )
  assert found.returncode == 1
  assert "num_updates must be at least 1" in found.stderr
