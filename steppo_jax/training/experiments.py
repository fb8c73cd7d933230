"""Experiments by name: where they lie, what they are, what they need.

An experiment is a Python file. A checkout has them in its folder
`experiments/`, and an installed package brings that folder along, so that
`train household_steppo` finds the same file in both. Files are read here, not
run.
"""

import ast
import dataclasses
import difflib
import os
import pathlib
import shutil
from collections.abc import Iterator

# What a file defines, and the commands that take it.
KINDS = {
  "CONFIG": "runs, for the commands train and evaluate",
  "MATRIX": "comparisons, for the command compare",
  "": "programs, which Python runs by themselves",
}


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One file of a folder of experiments.

  Attributes:
    name: By which commands find it: its path in the folder, without ".py".
    file: The file.
    root: The folder of experiments that it belongs to.
    kind: The name that it defines, a key of `KINDS`.
    about: First paragraph of its docstring.
  """

  name: str
  file: pathlib.Path
  root: pathlib.Path
  kind: str
  about: str


def packaged() -> pathlib.Path:
  """The folder of experiments that came with this package."""
  package = pathlib.Path(__file__).parents[1]
  installed = package / "experiments"
  return installed if installed.is_dir() else package.parent / "experiments"


def check_written(path: str | None) -> None:
  """Refuses to write weights into an installed package.

  Args:
    path: A file that a run is to write; None for none.

  Raises:
    ValueError: it lies among the experiments that were installed.
  """
  inside = pathlib.Path(__file__).parents[1]
  if path is not None and inside in pathlib.Path(path).resolve().parents:
    raise ValueError(
      f"save_weights={path} lies in the installed package: give another file, "
      "or copy the experiment with `python -m steppo_jax experiments NAME "
      "--copy`"
    )


def roots() -> list[pathlib.Path]:
  """Folders that are searched: the current one's, then the package's."""
  found = {
    folder.resolve(): folder
    for folder in (pathlib.Path("experiments"), packaged())
    if folder.is_dir()
  }
  return list(found)


def listing(kind: str | None = None) -> list[Experiment]:
  """All experiments in the order of their names.

  Args:
    kind: A key of `KINDS`; None for all.
  """
  found: dict[str, Experiment] = {}
  for root in roots():
    for file in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
      one = _read(file, root)
      found.setdefault(one.name, one)
  return [
    found[name] for name in sorted(found, key=lambda n: (n.count("/"), n))
    if kind in (None, found[name].kind)
  ]  # fmt: skip


def _read(file: pathlib.Path, root: pathlib.Path) -> Experiment:
  name = file.relative_to(root).with_suffix("").as_posix()
  try:
    tree = ast.parse(file.read_text())
  except (SyntaxError, ValueError, OSError):
    return Experiment(name, file, root, "", "(cannot be read)")
  defined = {
    target.id
    for node in tree.body
    if isinstance(node, ast.Assign)
    for target in node.targets
    if isinstance(target, ast.Name)
  }
  # What Python runs by itself may have a CONFIG of its own.
  program = any(
    isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    for node in tree.body
  )
  kind = "" if program else next((k for k in KINDS if k in defined), "")
  about = (ast.get_docstring(tree) or "").partition("\n\n")[0]
  return Experiment(name, file, root, kind, " ".join(about.split()))


def find(name: str) -> pathlib.Path:
  """The file of an experiment.

  Args:
    name: A path, or a name of `listing`, also without its folder.

  Raises:
    ValueError: there is neither; the message names the nearest.
  """
  path = pathlib.Path(name)
  if path.is_file():
    return path
  known = listing()
  wanted = name.removesuffix(".py") if "/" not in name else name
  for one in known:
    if wanted in (one.name, one.name.rpartition("/")[2]):
      return one.file
  raise ValueError(
    f"no experiment {name}; did you mean {_nearest(path, known)}; "
    "`python -m steppo_jax experiments` lists them"
  )


def _nearest(path: pathlib.Path, known: list[Experiment]) -> str:
  """Of a path the nearest file there; of a name, or else, the nearest name."""
  beside = [str(p) for p in sorted(path.parent.glob("*.py"))]
  if path.parent == pathlib.Path():
    beside = []  # A bare name means one of the list.
  close = difflib.get_close_matches(str(path), beside, n=1, cutoff=0.0)
  names = [one.name for one in known]
  wanted = path.with_suffix("").name if path.suffix == ".py" else str(path)
  close = close or difflib.get_close_matches(wanted, names, n=1, cutoff=0.0)
  return close[0] if close else "a file that is there"


def get(name: str) -> Experiment:
  """The experiment of a name; see `find`."""
  file = find(name).resolve()
  for one in listing():
    if one.file.resolve() == file:
      return one
  raise ValueError(f"{name} does not lie in a folder of experiments")


def needs(one: Experiment) -> list[pathlib.Path]:
  """Files that an experiment reads, itself first, each of them once.

  They are what it imports from beside it, experiments that it names, and
  weights that it names and that are there.

  Raises:
    ValueError: one of them is no Python.
  """
  found, waiting = [], [one.file]
  while waiting:
    file = waiting.pop(0)
    if file in found:
      continue
    found.append(file)
    if file.suffix == ".py":
      try:
        tree = ast.parse(file.read_text())
      except (SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
      waiting += _named(tree, file, one.root)
  return found


def _named(tree, file, root) -> Iterator[pathlib.Path]:
  """Files of the folder that a module imports or names in its text."""
  for node in _read_nodes(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [file.parent / f"{alias.name}.py" for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [file.parent / f"{node.module}.py"]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      if node.value.endswith(".py"):
        names = [root / node.value]
      elif node.value.endswith(".safetensors"):
        names = [root / "weights" / node.value]
    yield from (name for name in names if name.is_file())


def _read_nodes(tree) -> Iterator[ast.AST]:
  """All nodes but what a run writes, its argument `save_weights`."""
  yield tree
  for node in ast.iter_child_nodes(tree):
    if not (isinstance(node, ast.keyword) and node.arg == "save_weights"):
      yield from _read_nodes(node)


def copy(one: Experiment, target: pathlib.Path) -> list[pathlib.Path]:
  """Copies an experiment, and what it needs to where it looks for it.

  Args:
    one: The experiment.
    target: The file that it becomes.

  Returns:
    The files that were written; those that were there and equal are not.

  Raises:
    ValueError: another file is in the way, or would lie outside of the folder
      of `target`'s own; nothing is written then.
  """
  pairs = []
  for file in needs(one):
    apart = os.path.relpath(file, one.file.parent)
    place = target if file == one.file else target.parent / apart
    if apart.startswith("..") and target.parent in (
      pathlib.Path(),
      pathlib.Path("."),
    ):
      raise ValueError(
        f"{one.name} reads {apart}: copy it into a folder of its own, such as "
        f"experiments/{one.name}.py"
      )
    pairs.append((file, pathlib.Path(os.path.normpath(place))))
  new = []
  for file, place in pairs:
    if not place.exists():
      new.append((file, place))
    elif place.is_dir() or place.read_bytes() != file.read_bytes():
      raise ValueError(f"{place} exists and differs: name another file")
  for file, place in new:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place)
  return [place for _, place in new]
