"""The command `evaluate`: panels, samples, scores, files beside the output."""

import json
import pathlib

import jax
import pytest
import worlds
from marks import some

from steppo_jax import __main__ as cli
from steppo_jax.datasets import tasks as datasets_tasks
from steppo_jax.datasets import trajectories
from steppo_jax.pretrained import policy
from steppo_jax.reports import panel

ROOT = pathlib.Path(__file__).parents[2]
HERE = "127.0.0.1"
STEPPO = str(ROOT / "experiments" / "household_steppo.py")


@pytest.fixture
def command(tmp_path):
  """`evaluate` of a tiny policy with random weights."""
  path = tmp_path / "weights.safetensors"
  policy.save_policy(
    path, worlds.model(), jax.device_get(worlds.policy()),
    worlds.tokenizer(), {},
  )  # fmt: skip
  return [
    "evaluate", STEPPO, f"weights={path}", "env.size=tiny",
    "rollout.max_steps=3", "sampler.num_slots=8", "--episodes", "4",
  ]  # fmt: skip


def _refused(capsys, *argv):
  assert cli.main([str(a) for a in argv]) == 2
  return " ".join(capsys.readouterr().err.split())


def test_sampled_episodes_on_two_panels_leave_tables_steps_and_a_dataset(
  command, tmp_path, capsys
):
  output, record = tmp_path / "steps.jsonl", tmp_path / "data" / "played"
  assert cli.main([
    *command, "--split", "valid_seen,valid_unseen", "--temperature", "1",
    "--samples", "3", "--pass-at", "1,3", "--output", str(output),
    "--record", str(record),
  ]) == 0  # fmt: skip
  said = " ".join(capsys.readouterr().out.split())
  summary = json.loads((tmp_path / "steps.summary.json").read_text())
  for split in ("valid_seen", "valid_unseen"):
    assert f"household {split}, 4 tasks, panel {summary['panels'][split]}" in (
      said
    )
    assert {"pass@1", "pass@3"} <= set(summary["tables"][split]["all"])
    assert summary["lengths"][split]
  assert "at most 3 steps, temperature 1, 3 episodes a task" in said
  assert "success at 20 and at 50 steps is not comparable" in said
  assert (tmp_path / "steps.length.png").is_file()
  lines = [json.loads(line) for line in output.read_text().splitlines()]
  assert len({(x["split"], x["trajectory"]) for x in lines}) == 24
  assert all(x["golden_steps"] for x in lines)
  # The dataset holds the episodes: the tables come out of it again.
  folder = trajectories.folder_of(record.parent, record.name)
  digest = worlds.tokenizer().digest
  for split, table in summary["tables"].items():
    read = trajectories.load(folder, split, tokenizer=digest)
    again = panel.table(list(read), (1, 3))
    assert {
      family: {name: n._asdict() for name, n in row.items()}
      for family, row in again.items()
    } == table
  assert "exists: choose another" in _refused(
    capsys, *command, "--record", record
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("env", "scores"),
  some(
    ("paper_search",
     {f"{n}@{k}" for n in ("precision", "recall", "f1")
      for k in ("all", 100, 50, 25)}),
    slow=[
      ("search_qa", {"exact_match", "f1"}),
      ("webshop", {"official", "small"}),
    ],
  ),
)  # fmt: skip
def test_scores_of_the_environment_are_in_the_tables(
  command, env, scores, tmp_path, capsys
):
  folder = datasets_tasks.prepare(env, tmp_path / "data", size="tiny", count=3)
  output = tmp_path / "steps.jsonl"
  assert cli.main([
    *command, "--env", env, "--split", "valid_unseen",
    f"env.task_set={folder}", "rollout.max_tokens=1024",
    "packing.row_length=1024", "--output", str(output),
  ]) == 0  # fmt: skip
  assert "comparable" not in capsys.readouterr().out
  summary = json.loads((tmp_path / "steps.summary.json").read_text())
  found = summary["tables"]["valid_unseen"]["all"]
  assert scores <= set(found)
  assert all(found[name]["mean"] == 0.0 for name in scores)
  assert summary["tasks"] == {"valid_unseen": 3}
  lines = [json.loads(line) for line in output.read_text().splitlines()]
  assert all(set(line["scores"]) == scores for line in lines)


@pytest.mark.slow
def test_an_evaluation_packs_nothing_and_needs_no_rows(command, capsys):
  # 300 is more than the 256 tokens of a row.
  assert cli.main([*command, "--episodes", "1", "rollout.max_tokens=300"]) == 0
  assert "1 tasks" in capsys.readouterr().out


def test_a_service_that_is_down_is_told_at_once_and_by_the_exit_status(
  command, tmp_path, capsys
):
  # Nothing listens on port 9.
  options = (f"url=http://{HERE}:9", "timeout_s=1", "retries=0")
  output = tmp_path / "steps.jsonl"
  status = cli.main([
    *command, "--env", "remote", f"env.options={','.join(options)}",
    "--output", str(output),
  ])  # fmt: skip
  out, err = (" ".join(x.split()) for x in capsys.readouterr())
  assert status == 1
  assert "failed: " in err
  assert "all 4 episodes failed" in err
  assert "4 of 4 episodes failed with " in out
  summary = json.loads((tmp_path / "steps.summary.json").read_text())
  (failure,) = summary["failures"].values()
  assert failure["count"] == 4
  assert f"{HERE}:9" in failure["first"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--samples", "2"], "greedy episodes of a task are all the same"),
    (["--pass-at", "2"], "pass@2 needs at least 2 samples, not 1"),
    (["--pass-at", "0"], "pass@0 needs"),
    (["--pass-at", "two"], "--pass-at takes whole numbers"),
    (["--split", "test"], "split 'test' is none of"),
    (["--record", "a b"], "must be letters"),
    (["env.task_set=nowhere"], "is not a prepared dataset"),
  ],
)
def test_what_cannot_be_evaluated_is_refused_first(
  command, options, message, capsys
):
  assert message in _refused(capsys, *command, *options)
