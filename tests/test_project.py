"""What every tracked file must hold to."""

import ast
import collections
import importlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from steppo_jax.envs import base

ROOT = pathlib.Path(__file__).parents[1]
# What only the half on the devices needs.
HEAVY = {"jax", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets"}


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


def test_no_file_is_longer_than_450_lines():
  lengths = {str(path): text.count("\n") for path, text in texts("*.py")}
  assert not {p: n for p, n in lengths.items() if n > 450}


def test_no_function_has_more_than_60_lines_below_its_docstring():
  def lines(function):
    doc = ast.get_docstring(function, clean=False) is not None
    start = function.body[0].end_lineno if doc else function.lineno - 1
    return function.end_lineno - start

  kinds = ast.FunctionDef | ast.AsyncFunctionDef
  found = {
    (str(path), node.name): lines(node)
    for path, text in texts("steppo_jax/*.py")
    for node in ast.walk(ast.parse(text))
    if isinstance(node, kinds)
  }
  assert len(found) > 1000
  assert not {name: n for name, n in found.items() if n > 60}


def test_no_folder_of_the_package_holds_more_than_16_modules():
  found = collections.Counter(
    path.parent for path in tracked("steppo_jax/*.py")
  )
  assert not {str(p): n for p, n in found.items() if n > 16}


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


@pytest.mark.parametrize(
  "arguments",
  [
    ["--help"],
    ["train", "--help"],
    ["evaluate", "--help"],
    ["train", "experiments/household_steppo.py", "--help"],
    ["evaluate", "experiments/household_steppo.py", "--help"],
    ["compare", "--help"],
    ["generate", "--help"],
  ],
  ids=" ".join,
)
def test_help_loads_neither_jax_nor_what_needs_it(arguments):
  code = (
    "import sys; from steppo_jax import __main__\n"
    f"try: __main__.main({arguments})\n"
    "except SystemExit: pass\n"
    f"print(*({HEAVY} & set(sys.modules)), file=sys.stderr)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert "usage" in done.stdout.lower()
  assert done.stderr.strip() == ""


def layers():
  """The rooms of each line of the layers contract, highest first."""
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  contract = settings["tool"]["importlinter"]["contracts"][0]
  return [re.split(r" [|:] ", line) for line in contract["layers"]]


def floor(module):
  """The line on which a module stands; larger is lower."""
  for number, rooms in enumerate(layers()):
    if any(f"{module}.".startswith(f"{room}.") for room in rooms):
      return number
  raise AssertionError(f"{module} stands on no line of the layers contract")


def named_in_strings():
  """(module, what it names) of strings that are imported at run time."""
  for path, text in texts("steppo_jax/*.py"):
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for name in re.findall(r"^steppo_jax[.\w]+:\w+$", node.value):
          yield module, name
        imports = r"from (steppo_jax[.\w]*) import (\w+);"
        for package, name in re.findall(imports, node.value):
          yield module, f"{package}.{name}"
  for row in base.ENVS.values():
    for target in filter(None, row):
      yield "steppo_jax.envs.base", target


def test_modules_that_strings_name_are_there_and_below():
  found = set(named_in_strings())
  assert len(found) > 15
  for module, target in found:
    name, _, member = target.partition(":")
    loaded = importlib.import_module(name)
    assert not member or hasattr(loaded, member), target
    assert floor(name) >= floor(module), f"{module} names {target} above it"


def test_every_module_stands_on_a_line_of_the_layers_contract():
  assert len(layers()) == 9
  for path in tracked("steppo_jax/*.py"):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts != ("steppo_jax", "__init__"):
      floor(".".join(parts).removesuffix(".__init__"))


def test_the_ci_runs_the_tests_of_the_readme():
  assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_no_module_imports_itself():
  for path, text in texts("steppo_jax/*.py"):
    module = ".".join(path.with_suffix("").parts)
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        assert module not in {node.module, *names}, module
