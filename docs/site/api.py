"""The API reference: one page a folder of the package, from its docstrings.

Docstrings are written as plain text for a reader of the code. What they agree
on is turned into what the generator reads: names between backticks, sections
("Args", "Returns", ...), lists, and blocks that are indented, which are
equations or code.
"""

import pathlib
import re

# Folders in the order in which a reader of the method opens them.
FOLDERS = {
  "ops": "The equations, as pure functions of arrays",
  "algorithms": "The table of methods, credit and the loss",
  "learner": "One update, and what compiles it",
  "packing": "Trajectories to rows of tokens and a table of steps",
  "models": "The decoder, the critic, adapters and released formats",
  "sampler": "Drawing responses",
  "envs": "Environments, tasks, experts and guides",
  "prompts": "Observations to token ids",
  "rollout": "The loop that plays episodes, journal and pool",
  "datasets": "Demonstrations, tasks and trajectories as data sets",
  "training": "Options of a run, and the runs",
}
TOP = ("types", "batch", "files", "trees")

_SECTIONS = "Args|Returns|Raises|Attributes|Yields|Fields"
_TITLES = {"Args": "Arguments", "Fields": "Attributes"}


def page(package: pathlib.Path, folder: str) -> str:
  """The page of a folder, in reStructuredText: each of its modules."""
  title = f"``{folder}/``"
  lines = [title, "=" * len(title), "", f"{FOLDERS[folder]}.", ""]
  # Each environment and each file format of models is a folder of its own,
  # which others than its author do not call.
  inside = "**/*.py" if folder == "algorithms" else "*.py"
  files = sorted(package.glob(f"{folder}/{inside}"))
  for file in files:
    parts = file.relative_to(package.parent).with_suffix("").parts
    if parts[-1] != "__init__" or len(file.read_text().split()) > 1:
      lines += _module(".".join(parts).removesuffix(".__init__"))
  return "\n".join(lines)


def records() -> str:
  """The page of the records that everything else passes on."""
  lines = [
    "Records",
    "=======",
    "",
    "What the host and the devices pass on.",
    "",
  ]
  for name in TOP:
    lines += _module(f"steppo_jax.{name}")
  return "\n".join(lines)


def _module(name: str) -> list[str]:
  title = f"``{name.removeprefix('steppo_jax.')}``"
  return [
    title, "-" * len(title), "",
    f".. automodule:: {name}", "   :members:", "   :member-order: bysource", "",
  ]  # fmt: skip


def public(names: dict[str, str]) -> str:
  """The page of `import steppo_jax`: each public name and what it is."""
  import steppo_jax

  lines = [
    "Public names", "============", "",
    "``import steppo_jax`` loads neither JAX nor anything heavy; each of these",
    "names is loaded when it is first used.", "",
    ".. list-table::", "   :widths: 35 65", "   :header-rows: 1", "",
    "   * - name", "     - meaning",
  ]  # fmt: skip
  for name, module in sorted(names.items()):
    value = getattr(steppo_jax, name)
    told = getattr(value, "__doc__", None) if callable(value) else None
    home = getattr(value, "__module__", f"steppo_jax.{module}")
    first = (told or "The rows, by name.").strip().partition("\n\n")[0]
    link = (
      f":py:obj:`{name} <{home}.{name}>`" if callable(value) else f"``{name}``"
    )
    lines += [f"   * - {link}", f"     - {inline(' '.join(first.split()))}"]
  return "\n".join(lines)


def inline(text: str) -> str:
  """A line of a docstring as reStructuredText means it."""
  made = []
  for number, part in enumerate(text.split("`")):
    if number % 2 and part.strip():
      made.append(f"``{part.strip()}``")
      continue
    part = re.sub(r"([\\*|_])", r"\\\1", part)
    part = part.replace("\\*\\*", "**") if part.count("\\*\\*") == 2 else part
    made.append(
      re.sub(
        r"arXiv:(\d{4}\.\d{5})(v\d+)?",
        r"`arXiv:\1\2 <https://arxiv.org/abs/\1\2>`__",
        part,
      )
    )
  text = "".join(made)
  # Literal text has to be set apart from what touches it.
  text = re.sub(r"(?<=[\w)])(``[^`]+``)", r"\\ \1", text)
  return re.sub(r"(``[^`]+``)(?=[\w(])", r"\1\\ ", text)


def docstring(lines: list[str]) -> list[str]:
  """A docstring, already without its indentation, as reStructuredText."""
  made: list[str] = []
  at = 0
  while at < len(lines):
    section = re.fullmatch(rf"({_SECTIONS}):\s*", lines[at])
    if section:
      end = at + 1
      while end < len(lines) and (
        not lines[end].strip() or lines[end][0] == " "
      ):
        end += 1
      title = _TITLES.get(section[1], section[1])
      made += ["", f".. rubric:: {title}", ""]
      made += _items(lines[at + 1 : end], section[1] != "Returns")
      at = end
    elif lines[at].startswith("  ") and (not made or not made[-1].strip()):
      end = at
      while end < len(lines) and (
        not lines[end].strip() or lines[end][0] == " "
      ):
        end += 1
      made += ["::", "", *(f"  {line}" for line in lines[at:end]), ""]
      at = end
    elif re.match(r"[-*] +\S", lines[at]):
      made += ["", f"- {inline(lines[at][1:].strip())}"]
      at += 1
      while at < len(lines) and lines[at].startswith(" "):
        made.append(f"  {inline(lines[at].strip())}")
        at += 1
      made.append("")
    else:
      made.append(inline(lines[at]))
      at += 1
  return [*made, ""]


def _items(lines: list[str], named: bool) -> list[str]:
  """The items of a section: names with what they mean, or plain text."""
  made: list[str] = []
  for line in lines:
    start = re.match(r"  (\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)", line)
    if start and named:
      names = ", ".join(f"``{name}``" for name in start[1].split(", "))
      made += ["", names, f"   {inline(start[2])}"]
    elif line.strip() and made and named:
      made.append(f"   {inline(line.strip())}")
    else:
      made.append(inline(line.strip()))
  return [*made, ""]
