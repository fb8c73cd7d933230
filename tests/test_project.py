"""What every tracked file must hold to."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def tracked(pattern="*"):
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--", pattern],
    cwd=ROOT,
    capture_output=True,
    check=False,
  )
  if listed.returncode:
    pytest.skip("not a git checkout")
  paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
  return [path for path in paths if path.is_file()]


def texts(pattern="*"):
  for path in tracked(pattern):
    data = path.read_bytes()
    if b"\0" not in data:
      yield path.relative_to(ROOT), data.decode()


def found(pattern):
  """Lines of tracked text that match; this file spells the patterns."""
  return [
    f"{path}:{number}: {line.strip()[:100]}"
    for path, text in texts()
    if path.name != pathlib.Path(__file__).name
    for number, line in enumerate(text.splitlines(), 1)
    if re.search(pattern, line)
  ]


def test_no_path_of_one_machine_is_written_down():
  assert not found(r"(^|[\s\"'`=(:])/(home|root|work|Users|opt|mnt|tmp)/\w")


def test_no_package_registry_is_written_down():
  assert not found(
    r"index-url|find-links|files\.pythonhosted|/simple/|"
    r"https?://(localhost|127\.|10\.|192\.168\.)"
  )


def test_nothing_is_pickled():
  for path, text in texts("*.py"):
    for node in ast.walk(ast.parse(text)):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      for name in names:
        assert name.split(".")[0] not in {
          *("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"),
        }, f"{path} imports {name}"


def test_no_file_is_longer_than_350_lines():
  lengths = {str(path): text.count("\n") for path, text in texts("*.py")}
  assert not {p: n for p, n in lengths.items() if n > 350}


def test_no_large_file_is_tracked():
  # The warm start stays under 3 MB; nothing else comes near.
  sizes = {p.name: p.stat().st_size for p in tracked()}
  assert not {name: size for name, size in sizes.items() if size > 3_000_000}


def test_importing_the_package_loads_nothing_heavy():
  code = (
    "import sys, steppo_jax\n"
    "heavy = {'jax', 'flax', 'tensorflow', 'numpy', 'orbax', 'optax'}\n"
    "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_the_ci_runs_the_tests_of_the_readme():
  assert "make test" in (ROOT / ".ci" / "run").read_text()
