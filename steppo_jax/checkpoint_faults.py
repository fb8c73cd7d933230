"""What can be wrong with a checkpoint, and how it is told."""

import pathlib

from steppo_jax import manifest


def first(error) -> str:
  """The first line of an error, cut to a length that can be read."""
  return str(error).strip().split("\n")[0][:200]


class Broken(RuntimeError):
  """A checkpoint that cannot be used."""

  def __init__(self, story: str, unfinished: bool = False):
    super().__init__(story)
    self.unfinished = unfinished


def story(path: pathlib.Path, error, state: str = "is broken") -> str:
  """One line about a checkpoint and its error."""
  kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
  return f"the checkpoint {path} {state} ({kind}{first(error)})"


def find(path: pathlib.Path) -> Broken | None:
  """What is wrong with the files of a checkpoint, read one by one."""
  if path.is_symlink():
    return Broken(story(path, "it is a link"))
  try:
    manifest.check_files(path)
  except manifest.Missing as error:
    return Broken(story(path, error, "was not finished"), unfinished=True)
  except (ValueError, OSError) as error:
    return Broken(story(path, error))
  return None
