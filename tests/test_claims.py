"""What docs/comparison.md says of methods follows from their results."""

import json
import pathlib

import numpy as np
import pytest
from marks import some

from steppo_jax.compare import cells as compare
from steppo_jax.compare import matrix
from steppo_jax.compare import report as compare_report

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = (DOCS / "comparison.md").read_text()


def test_the_claims_in_the_text_are_those_of_the_results(load, capsys):
  claims = load("claims")
  claims.main(DOCS / "compare")
  printed = capsys.readouterr().out.splitlines()
  # The head, a line each, an empty line, what it cost.
  assert len(printed) == 4 + len(claims.CONTRASTS)
  for line in printed:
    assert line in RESULTS, line


@pytest.mark.parametrize(
  "path", sorted((DOCS / "compare").glob("*.jsonl")), ids=lambda p: p.stem
)
def test_the_tables_in_the_text_are_those_of_the_results(path):
  tables = compare_report.tables(compare_report.read(path))
  rows = [x for x in tables.splitlines() if "finished runs" in x]
  assert rows
  for line in (*rows, *_rows(tables)):
    assert line in RESULTS, line


@pytest.mark.parametrize(
  "name",
  some(
    "equal_ablation", "group_weighting",
    slow=["critic", "equal", "horizon", "scratchpad_ablation", "shop",
          "updates"],
  ),
)  # fmt: skip
def test_committed_results_are_known_to_their_matrix(name):
  # An option that is added to the package does not ask for the runs again.
  made = matrix.load(str(ROOT / "experiments" / "compare" / f"{name}.py"))
  chosen = compare.choose(made, ROOT)
  wanted = {matrix.digest(made, x) for x in matrix.final_cells(made, chosen)}
  lines = compare_report.read(DOCS / "compare" / f"{name}.jsonl")
  assert {x["options"] for x in lines} == wanted


def _rows(tables):
  """The rows of methods: those with a count of finished runs."""
  return [x for x in tables.splitlines() if x.count("|") == 10 and " of " in x]


def test_a_contrast_is_that_of_a_t_test(load):
  claims = load("claims")
  random = np.random.default_rng(0)
  a, b = (
    random.normal(0.5, 0.1, 5).tolist(),
    random.normal(0.4, 0.1, 4).tolist(),
  )
  found = claims.contrast({"a": a, "b": b, "none": []}, {"a": 1, "b": -1})
  from scipy import stats  # Takes a second, in every process that collects.

  test = stats.ttest_ind(a, b)
  interval = test.confidence_interval(0.95)
  want = (np.mean(a) - np.mean(b), interval.low, interval.high)
  np.testing.assert_allclose(found, want, rtol=1e-12)


def test_runs_of_many_worlds_are_not_mixed(load):
  groups = load("claims").by_method(DOCS / "compare/horizon.jsonl", "success")
  assert len(groups) == 9
  lines = compare_report.read(DOCS / "compare/horizon.jsonl")
  want = [
    x["success"]
    for x in lines
    if (x["world"], x["method"]) == ("40_steps", "ppo")
  ]
  assert groups["40_steps/ppo"] == want
  assert len(want) == 3


def test_a_contrast_needs_runs(load):
  claims = load("claims")
  with pytest.raises(ValueError, match="two runs"):
    claims.contrast({"a": [0.5], "b": [0.4]}, {"a": 1, "b": -1})
  with pytest.raises(KeyError):
    claims.contrast({"a": [0.5, 0.4], "b": []}, {"a": 1, "b": -1})


def test_verdicts(load):
  verdict = load("claims").verdict
  assert verdict(0.01, 0.1, 0.05) == "supported"
  assert verdict(-0.1, 0.04, 0.05) == "not supported"
  assert verdict(-0.1, 0.06, 0.05) == "undecided"
  assert verdict(-0.1, 0.0, None) == "undecided"
  # Zero or less is all that is claimed: it is not supported by losing.
  assert verdict(-0.1, -0.01, -0.004) == "not supported"


def test_results_that_cannot_be_read_are_named(load, tmp_path):
  claims = load("claims")
  (tmp_path / "household.jsonl").write_text(json.dumps({"kind": "x"}) + "\n")
  with pytest.raises(ValueError, match=r"household\.jsonl, line 1"):
    claims.main(tmp_path)
