"""Episodes read by Hugging Face's datasets and by ATIF's models, and back."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
import records
import worlds

from steppo_jax.datasets import tables
from steppo_jax.datasets import trajectories as lib

pytestmark = pytest.mark.standards

PROGRAM = pathlib.Path(__file__).parent / "read_datasets.py"


def test_other_packages_read_what_was_written_and_we_what_they_write(tmp_path):
  played = records.episodes()
  for form in ("parquet", "jsonl", "atif"):
    data = {"train": played, "valid_seen": played[:2]}
    lib.write(tmp_path, form, data, worlds.tokenizer(), form)
  python = pathlib.Path(os.environ["STEPPO_STANDARDS"]) / "datasets"
  ran = subprocess.run(
    [str(python / "bin" / "python"), str(PROGRAM), str(tmp_path)],
    capture_output=True, text=True, timeout=300,
    env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
  )  # fmt: skip
  assert ran.returncode == 0, ran.stderr[-3000:]
  found = json.loads(ran.stdout.splitlines()[-1])
  logp = [s.behaviour_logp.tobytes().hex() for t in played for s in t.steps]
  for form in ("parquet", "jsonl"):
    assert found[form]["splits"] == {"train": len(played), "valid_seen": 2}
    assert found[form]["logp"] == logp
    assert found[form]["uids"] == [t.uid for t in played]
    assert {"steps", "task", "tokenizer"} <= set(found[form]["columns"])
    read = tables.load_file(tmp_path / "out" / f"{form}.parquet")
    assert [*map(records.plain, read)] == [*map(records.plain, played)]
    # What `to_json` writes is rounded to ten digits, by Pandas.
    read = tables.load_file(tmp_path / "out" / f"{form}.jsonl")
    for one, want in zip(read, played, strict=True):
      assert one.uid == want.uid
      for step, other in zip(one.steps, want.steps, strict=True):
        np.testing.assert_array_equal(step.prompt_ids, other.prompt_ids)
        np.testing.assert_array_equal(step.response_ids, other.response_ids)
        np.testing.assert_allclose(step.reward, other.reward, atol=1e-9)
  assert found["atif"] == [len(t.steps) + 1 for t in played]
