"""Experiments are found by name, listed, shown and copied out."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

from steppo_jax import __main__ as cli
from steppo_jax.training import config, experiments

ROOT = pathlib.Path(__file__).parents[2]
NAMES = [one.name for one in experiments.listing()]
RUNS = [one.name for one in experiments.listing("CONFIG")]


def said(capsys, *arguments):
  """Status and all that a command says, in one line."""
  try:
    status = cli.main([str(argument) for argument in arguments])
  except SystemExit as stop:
    status = stop.code
  out = capsys.readouterr()
  return status, " ".join((out.out + out.err).split())


def test_every_file_of_the_folder_is_an_experiment_of_its_kind():
  files = [*ROOT.glob("experiments/*.py"), *ROOT.glob("experiments/*/*.py")]
  assert len(NAMES) == len(files) > 40
  assert {one.kind for one in experiments.listing()} == set(experiments.KINDS)
  for one in experiments.listing("MATRIX"):
    assert one.name.startswith("compare/")
  assert "research/own_model" not in RUNS


@pytest.mark.parametrize(
  ("arguments", "shown", "hidden"),
  [
    (["train", "--help"], RUNS, ["compare/pilot", "chain/door"]),
    (["evaluate", "-h"], RUNS, ["compare/pilot"]),
    (["compare", "--help"], ["compare/pilot"], ["household_sft"]),
    (["experiments"], NAMES, []),
  ],
  ids=lambda value: value[0] if value else "",
)
def test_help_lists_what_a_command_takes_with_its_first_line(
  capsys, arguments, shown, hidden
):
  status, text = said(capsys, *arguments)
  assert status == 0
  words = text.split()
  assert not [name for name in shown if name not in words]
  assert not [name for name in hidden if name in words]
  assert str(ROOT) not in text
  assert str(pathlib.Path.home()) not in text


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_no_line_of_the_lists_is_wider_than_the_terminal(
  capsys, monkeypatch, columns
):
  monkeypatch.setenv("COLUMNS", str(columns))
  for command in ("experiments", "algorithms"):
    assert cli.main([command]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Sentences around the lists are not broken, and none is longer than this.
    assert max(map(len, lines)) <= max(columns, 72)


def test_a_bare_name_is_the_file_of_that_name():
  by_file = config.load(str(ROOT / "experiments" / "household_steppo.py"))
  assert config.load("household_steppo") == by_file
  assert experiments.find("pilot") == experiments.find("compare/pilot")


def test_a_folder_of_ones_own_comes_before_the_packages(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  own = tmp_path / "experiments"
  own.mkdir()
  (own / "household_steppo.py").write_text('"""Mine."""\nCONFIG = 1\n')
  (own / "torn.py").write_text("CONFIG = (\n")
  found = {one.name: one for one in experiments.listing()}
  assert found["household_steppo"].about == "Mine."
  assert found["torn"].about == "(cannot be read)"
  with pytest.raises(ValueError, match=r"torn\.py cannot be read: .* closed"):
    experiments.copy(found["torn"], tmp_path / "copy.py")
  assert "webshop_steppo" in found


@pytest.mark.parametrize("name", NAMES)
def test_one_letter_less_names_the_experiment_that_was_meant(name):
  with pytest.raises(ValueError, match=f"did you mean {name};"):
    experiments.find(name.replace("e", "", 1) + "x")


def test_unknown_commands_options_and_comparisons_name_the_nearest(capsys):
  for arguments, near in (
    (["trian"], "train"),
    (["experimnts"], "experiments"),
    (["report", "x", "--controll", "y"], "--control"),
    (["compare", "pilott"], "compare/pilot"),
    (["experiments", "shop_steppo"], "webshop_steppo"),
  ):
    status, text = said(capsys, *arguments)
    assert status == 2
    assert f"did you mean {near}" in text


def test_one_is_shown_as_it_is(capsys):
  assert cli.main(["experiments", "household_sft"]) == 0
  text = (ROOT / "experiments" / "household_sft.py").read_text()
  assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", RUNS)
def test_a_copy_loads_elsewhere_as_the_same_run(name, tmp_path, monkeypatch):
  """Nothing that an experiment reads is left behind, and nothing changes."""
  one = experiments.get(name)
  original = repr(config.load(str(one.file)))
  copy = tmp_path / f"{name}.py"
  copied = experiments.copy(one, copy)
  # What it imports from beside it is not to be that of the folder it is from.
  for other in RUNS:
    monkeypatch.delitem(sys.modules, other, raising=False)
  loaded = repr(config.load(str(copy)))
  assert loaded.replace(str(tmp_path), "X") == original.replace(
    str(one.root), "X"
  )
  read = pathlib.Path(config.load(str(one.file)).weights or "none")
  assert read.name in {file.name for file in copied} or not read.exists()


def test_a_comparison_is_copied_with_what_it_is_based_on(tmp_path, capsys):
  one = experiments.get("compare/ablation")
  with pytest.raises(ValueError, match="copy it into a folder of its own"):
    experiments.copy(one, pathlib.Path("mine.py"))
  experiments.copy(one, tmp_path / "compare" / "mine.py")
  files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")}
  assert files == {
    "compare/mine.py",
    "compare/household.py",
    "household_steppo.py",
    "weights/household_warm_start.safetensors",
  }


def test_a_file_in_the_way_is_kept_and_nothing_is_written(tmp_path):
  one = experiments.get("webshop_steppo")
  (tmp_path / "household_steppo.py").write_text("# mine\n")
  with pytest.raises(ValueError, match="exists and differs"):
    experiments.copy(one, tmp_path / "webshop_steppo.py")
  assert [p.name for p in tmp_path.iterdir()] == ["household_steppo.py"]
  # Equal files are no obstacle.
  (tmp_path / "household_steppo.py").unlink()
  assert experiments.copy(one, tmp_path / "webshop_steppo.py")
  assert experiments.copy(one, tmp_path / "webshop_steppo.py") == []
  (tmp_path / "household_steppo.py").unlink()
  (tmp_path / "household_steppo.py").mkdir()
  with pytest.raises(ValueError, match="exists and differs"):
    experiments.copy(one, tmp_path / "webshop_steppo.py")


def test_no_run_writes_weights_into_the_package(capsys, tmp_path):
  inside = pathlib.Path(experiments.__file__).parents[1] / "x.safetensors"
  status, text = said(
    capsys, "train", "household_sft", f"save_weights={inside}",
    f"run_dir={tmp_path / 'run'}",
  )  # fmt: skip
  assert status == 2
  assert "lies in the installed package: give another file" in text
  assert not (tmp_path / "run").exists()
  experiments.check_written(str(tmp_path / "x.safetensors"))


@pytest.mark.slow
def test_a_package_from_a_wheel_finds_and_trains_its_experiments(tmp_path):
  """Installed beside no checkout: listed, shown, trained by name, copied."""
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
  source = tmp_path / "source"
  subprocess.run(
    ["git", "clone", "-q", str(ROOT), str(source)], check=True
  )  # fmt: skip
  subprocess.run(
    [*pip, "wheel", "--no-deps", "-w", str(tmp_path / "dist"), str(source)],
    check=True,
  )
  wheel = next((tmp_path / "dist").glob("*.whl"))
  site = tmp_path / "site"
  subprocess.run(
    [*pip, "install", "--no-deps", "--target", str(site), str(wheel)],
    check=True,
  )
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  code = textwrap.dedent(f"""
    import sys
    sys.path.insert(0, {str(site)!r})
    import steppo_jax
    assert steppo_jax.__file__.startswith({str(site)!r})
    from steppo_jax import __main__
    run = ["num_updates=1", "tasks_per_update=2", "evaluation.episodes=2"]
    assert not __main__.main(["experiments"])
    assert not __main__.main(["train", "household_steppo", *run, "run_dir=a"])
    assert not __main__.main(["experiments", "household_steppo", "--copy"])
    copied = "experiments/household_steppo.py"
    assert not __main__.main(["train", copied, *run, "run_dir=b"])
  """)
  done = subprocess.run(
    [sys.executable, "-P", "-c", code],
    cwd=elsewhere, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert "household_steppo" in done.stdout
  assert (elsewhere / "a" / "policy.safetensors").exists()
  assert (elsewhere / "b" / "policy.safetensors").exists()
