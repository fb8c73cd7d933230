"""Reads datasets of ours by other packages: `python read_datasets.py FOLDER`.

Run by an interpreter that has Hugging Face's `datasets` and `atif`. FOLDER has
our datasets by the names of their formats; what `datasets` writes of them goes
to FOLDER/out. Prints what was found as JSON.
"""

import json
import pathlib
import sys

import atif
import datasets
import numpy as np

root = pathlib.Path(sys.argv[1])
found = {}
(root / "out").mkdir()
for form in ("parquet", "jsonl"):
  read = datasets.load_dataset(str(root / form), cache_dir=str(root / "cache"))
  train = read["train"]
  logp = [
    np.asarray(step["behaviour_logp"], np.float32).tobytes().hex()
    for row in train
    for step in row["steps"]
  ]
  found[form] = {
    "splits": {name: len(of) for name, of in read.items()},
    "columns": sorted(train.column_names),
    "logp": logp,
    "uids": train["uid"][:],
  }
  train.to_parquet(str(root / "out" / f"{form}.parquet"))
  train.to_json(str(root / "out" / f"{form}.jsonl"))
documents = [
  atif.Trajectory.model_validate_json(path.read_text())
  for path in sorted((root / "atif" / "train").iterdir())
]
found["atif"] = [len(one.steps) for one in documents]
print(json.dumps(found))
