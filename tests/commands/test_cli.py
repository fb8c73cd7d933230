"""The command line: help that teaches, mistakes that are named."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
import rich.console
import rich.progress
import worlds

from steppo_jax import __main__ as cli
from steppo_jax import types
from steppo_jax.algorithms.table import ALGORITHMS
from steppo_jax.commands import terminal
from steppo_jax.pretrained import policy
from steppo_jax.training import config

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
STEPPO = str(EXPERIMENTS / "household_steppo.py")


@pytest.fixture
def weights(tmp_path):
  path = tmp_path / "weights.safetensors"
  policy.save_policy(
    path, worlds.model(), jax.device_get(worlds.policy()),
    worlds.tokenizer(), {},
  )  # fmt: skip
  return str(path)


def fails(capsys, *argv, status=2):
  """Runs a command that must fail; returns what it said."""
  try:
    code = cli.main([str(a) for a in argv])
  except SystemExit as stop:
    code = stop.code
  assert code == status
  out = capsys.readouterr()
  return " ".join((out.err + out.out).split())


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=str)
def test_every_experiment_loads_and_names_a_row_of_the_table(path):
  loaded = config.load(str(path))
  if isinstance(loaded, config.RunConfig):
    loaded.algorithm.row()


def test_assignments_reach_nested_options():
  loaded = config.override(
    config.load(STEPPO),
    [
      "learner.learning_rate=1e-3",
      "rollout.max_steps=7",
      "run_dir=runs/x",
      "learner.target_kl=None",
      "sampler.prefill_lengths=8,32",
      "env.options=crash=0.1,hang=0.05",
      "env.limits.step_s=0.5",
    ],
    "test",
  )
  assert loaded.learner.learning_rate == 1e-3
  assert loaded.rollout.max_steps == 7
  assert loaded.run_dir == "runs/x"
  assert loaded.learner.target_kl is None
  assert loaded.sampler.prefill_lengths == (8, 32)
  assert loaded.env.options == ("crash=0.1", "hang=0.05")
  assert loaded.env.limits.step_s == 0.5
  # What is not assigned keeps the experiment's value.
  assert loaded.algorithm == config.load(STEPPO).algorithm


def test_an_unknown_key_names_the_nearest(capsys):
  said = fails(capsys, "train", STEPPO, "learner.lerning_rate=1e-3")
  assert "learner.lerning_rate" in said
  assert "did you mean 'learner.learning_rate'" in said


@pytest.mark.parametrize(
  ("assignment", "names"),
  [
    ("learner.learning_rate=fast", "learner.learning-rate"),
    ("num_updates=1.5", "num-updates"),
    ("evaluation.every=", "evaluation.every"),
  ],
)
def test_a_value_of_the_wrong_type_names_its_option(capsys, assignment, names):
  assert names in fails(capsys, "train", STEPPO, assignment)


@pytest.mark.parametrize(
  ("assignment", "message"),
  [
    ("seed", "expected key=value"),
    ("algorithm.name=stepo", "did you mean 'steppo'"),
    ("algorithm.clip_low=5", "clip_low=5 does not fit a step ratio"),
    ("env.size=huge", "env.size='huge' is none of tiny"),
    ("env.name=houshold", "did you mean 'household'"),
    ("env.options=dialekt=put", "did you mean 'dialect'"),
    ("env.limits.step_s=0", "env.limits.step_s=0"),
    ("weights=nowhere.safetensors", "nowhere.safetensors"),
    ("packing.row_length=64", "packing.row_length=64 is shorter"),
    ("num_updates=0", "num_updates must be at least 1"),
    ("record_every=0", "record_every must be at least 1"),
    ("checkpoint_every=0", "checkpoint_every must be at least 1"),
    ("evaluation.every=0", "evaluation.every=0 must be at least 1"),
    ("evaluation.split=test", "split 'test' is none of"),
    ("env.name=alfworld", "needs env.data_dir"),
    ("num_devices=99", "num_devices=99"),
    ("rollout.staleness=-1", "rollout.staleness=-1 must be at least 0"),
    ("rollout.top_p=0.9", "sample from the whole softmax"),
    ("sampler.top_k=40", "sample from the whole softmax"),
  ],
)
def test_values_that_cannot_work_are_refused(
  capsys, tmp_path, weights, assignment, message
):
  said = fails(
    capsys, "train", STEPPO, f"weights={weights}",
    f"run_dir={tmp_path / 'run'}", assignment,
  )  # fmt: skip
  assert message in said
  # Nothing is left that the corrected command would stumble over.
  assert not (tmp_path / "run").exists()


def test_a_missing_experiment_names_the_nearest(capsys):
  said = fails(capsys, "train", EXPERIMENTS / "household_stepo.py")
  assert "did you mean" in said
  assert "household_steppo.py" in said


def test_a_file_without_config_is_refused(capsys, tmp_path):
  empty = tmp_path / "empty.py"
  empty.write_text("X = 1\n")
  assert "defines no CONFIG" in fails(capsys, "train", empty)


def test_a_missing_data_folder_is_named_in_one_piece(capsys, tmp_path, weights):
  missing = tmp_path / "nowhere-at-all" / ("a-name-wider-than-a-terminal" * 4)
  said = fails(
    capsys, "evaluate", STEPPO, f"weights={weights}", "--env", "alfworld",
    "--data-dir", missing, "--split", "valid_seen",
  )  # fmt: skip
  assert str(missing) in said


def test_help_lists_every_option_with_its_meaning(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(["train", STEPPO, "--help"])
  assert stop.value.code == 0
  shown = " ".join(capsys.readouterr().out.split())
  for option in (
    "--learner.learning-rate", "--rollout.max-steps", "--seed",
    "--many-hosts", "--coordinator HOST:PORT",
  ):  # fmt: skip
    assert option in shown
  assert "Root of everything random" in shown


def test_the_main_help_shows_examples(capsys):
  with pytest.raises(SystemExit):
    cli.main(["--help"])
  assert "train household_steppo" in capsys.readouterr().out


def test_algorithms_prints_a_row_for_each(capsys):
  assert cli.main(["algorithms"]) == 0
  shown = capsys.readouterr().out
  lines = shown.splitlines()
  named = [line.split()[0] for line in lines if line[:1].strip()]
  assert named[1 : 1 + len(ALGORITHMS)] == list(ALGORITHMS)
  assert max(map(len, lines)) <= 80
  assert "gear: a slot without a row. arXiv:2605.11853" in shown


def test_algorithms_tells_all_of_one_row(capsys):
  assert cli.main(["algorithms", "agentopsd"]) == 0
  shown = capsys.readouterr().out
  assert max(map(len, shown.splitlines())) < 82
  for told in (
    "source", "arXiv:2608.05987", "code: public code was read",
    "group, reference, teacher", "decay", "0.95", "belief",
  ):  # fmt: skip
    assert told in shown, told
  assert "did you mean 'agentopsd'" in fails(capsys, "algorithms", "agentops")
  assert "slot without a row" in fails(capsys, "algorithms", "gear")


def test_evaluate_plays_a_panel_and_writes_every_step(
  capsys, tmp_path, weights
):
  steps = tmp_path / "steps.jsonl"
  command = [
    "evaluate", STEPPO, f"weights={weights}", "env.size=tiny",
    "rollout.max_steps=3", "sampler.num_slots=8", "--episodes", "5",
    "--samples", "2", "--temperature", "1.0", "--output", str(steps),
  ]  # fmt: skip
  assert cli.main(command) == 0
  shown = capsys.readouterr().out
  assert "panel" in shown
  assert "success" in shown
  lines = [json.loads(line) for line in steps.read_text().splitlines()]
  assert len({line["trajectory"] for line in lines}) == 10
  assert len({line["task"] for line in lines}) == 5
  assert all("Your task is to:" in line["prompt"] for line in lines)


def test_an_unwritable_output_is_an_error_before_the_episodes(
  capsys, tmp_path, weights
):
  said = fails(
    capsys, "evaluate", STEPPO, f"weights={weights}",
    "--output", tmp_path / "no" / "folder" / "x.jsonl",
  )  # fmt: skip
  assert "no folder" in said


def test_a_stray_argument_of_another_command_is_refused(capsys):
  assert "unrecognized" in fails(capsys, "algorithms", "grpo", "seed=1")


def test_report_of_an_empty_folder_says_so(capsys, tmp_path):
  assert str(tmp_path.name) in fails(capsys, "report", tmp_path)


def test_importing_the_package_loads_neither_jax_nor_tensorflow():
  code = (
    "import sys, steppo_jax; "
    "print([m for m in ('jax', 'tensorflow', 'flax') if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_no_bar_is_drawn_while_tfds_is_loaded(command, tmp_path):
  """Its imports break those of the thread that draws; see findings/."""
  code = (
    "import sys; from steppo_jax import __main__; "
    "from steppo_jax.commands import terminal\n"
    "def progress(): sys.exit('tensorflow_datasets' not in sys.modules)\n"
    "terminal.progress = progress\n"
    f"__main__.main([{command!r}, {STEPPO!r}, 'run_dir={tmp_path}/run'])"
  )
  out = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert out.returncode == 0, out.stderr


@pytest.mark.slow
def test_a_run_whose_episodes_all_fail_says_why_by_cause_and_exits_with_1(
  capsys, tmp_path, weights
):
  # Nothing listens on port 9; one address is none.
  said = fails(
    capsys, "train", STEPPO, f"weights={weights}", f"run_dir={tmp_path}/run",
    "env.name=remote", "env.options=url=http://{}:9,timeout_s=1,retries=0".format(
      "localhost"
    ), "evaluation.episodes=3", "num_devices=1", "rollout.env_threads=0",
    status=1,
  )  # fmt: skip
  assert said.count("failed: EnvUnreachable: ") == 1
  assert "3 episodes failed: 3 EnvUnreachable" in said
  assert "evaluation after update 0: all 3 episodes failed" in said


def test_the_first_failure_is_told_at_once_and_all_by_cause_at_the_end():
  progress = rich.progress.Progress(
    console=rich.console.Console(file=io.StringIO(), width=200)
  )
  said = progress.console.file.getvalue
  with terminal.Failures(progress):
    pass
  assert said() == ""
  task = types.Task("t", "e", "f", {})
  with terminal.Failures(progress) as failures:
    for error in ("OSError: a: b", "OSError: c", "EnvDied: [red] d"):
      failures(types.Trajectory("u", task, (), None, False, error))
    assert said() == "episode u failed: OSError: a: b\n"
  assert said().endswith("\n3 episodes failed: 2 OSError, 1 EnvDied\n")


@pytest.mark.parametrize(
  ("flags", "devices", "least"),
  [
    ("", None, None),
    ("--xla_force_host_platform_device_count=1", None, None),
    ("--xla_force_host_platform_device_count=2", None, 16),
    ("--a=b --xla_force_host_platform_device_count=8", None, 64),
    ("", "4", 32),
    ("--xla_force_host_platform_device_count=many", "x", None),
  ],
)
def test_devices_of_one_cpu_have_threads_to_wait_for_each_other(
  monkeypatch, flags, devices, least
):
  for name in ("NPROC", "JAX_NUM_CPU_DEVICES"):
    monkeypatch.setenv(name, "")  # Both are as they were after the test.
    monkeypatch.delenv(name)
  monkeypatch.setenv("XLA_FLAGS", flags)
  if devices is not None:
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", devices)
  terminal.prepare_jax()
  found = os.environ.get("NPROC")
  assert found is None if least is None else int(found) >= least
  if found is None:
    terminal.prepare_jax(several=True)
    assert int(os.environ["NPROC"]) >= 8


def test_a_number_of_threads_that_was_given_stays(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
  monkeypatch.setenv("NPROC", "5")
  terminal.prepare_jax()
  assert os.environ["NPROC"] == "5"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, capfd):
  interrupt = lambda *_: signal.raise_signal(signal.SIGINT)
  monkeypatch.setattr(terminal, "experiment_lines", interrupt)
  assert cli.main(["experiments"]) == 130
  assert capfd.readouterr() == ("", "interrupted\n")
