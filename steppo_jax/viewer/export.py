"""Chosen episodes as one page that opens from the disk.

The page is the viewer's own: its scripts and its sheet stand in the file, and
the episodes beside them as data. It loads nothing, and says so to the browser.
"""

import base64
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from steppo_jax.viewer import app, episode, listing, runs

# In the order in which each finds what it uses.
_SCRIPTS = (
  "dom.js", "api.js", "chart.js", "tokens.js", "scene.js", "task.js",
  "runs.js", "episodes.js", "episode.js", "main.js",
)  # fmt: skip
_IMPORT = re.compile(
  r"^import (\{[^}]*\}) from \"\./(\w+)\.js\";$", re.MULTILINE
)
_EXPORT = re.compile(
  r"^export (?=(?:async )?(?:function|const) (\w+))", re.MULTILINE
)
_COLUMNS = (
  "id", "uid", "at", "split", "task", "family", "success", "cause", "steps",
  "tokens", "sampled", "version", "reward", "verdict", "note",
)  # fmt: skip


def write(
  folder: pathlib.Path,
  shown: Sequence[runs.Run],
  *,
  uids: Sequence[str] | None = None,
  where: Mapping[str, str] = {},
  most: int = 100,
) -> int:
  """Writes `index.html` into a folder.

  Episodes that somebody excluded are left out unless they are named.

  Args:
    folder: It is made, or empty.
    shown: The runs.
    uids: These episodes; None for those that filters leave.
    where: Filters as in `listing.page`.
    most: Episodes of each run.

  Returns:
    The number of episodes.

  Raises:
    ValueError: nothing is left, an episode is not there, or the folder holds
      something.
    RuntimeError: it cannot be written.
  """
  if most < 1:
    raise ValueError(f"--most={most} must be at least 1")
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f"{folder} holds something: choose another folder")
  rows, episodes = [], {}
  for run in shown:
    run.index.refresh()
    for number in _chosen(run, uids, where, most):
      found = episode.detail(run, number)
      episodes[f"{run.number}/{number}"] = _without_paths(found)
      rows.append(_row(run, number))
  missing = set(uids or ()) - {row["uid"] for row in rows}
  if missing:
    raise ValueError(f"there is no episode {', '.join(sorted(missing))}")
  if not rows:
    raise ValueError("no episode is left by --where")
  about = [
    {"number": run.number, "label": run.label, "without_text": ""}
    for run in shown
  ]  # fmt: skip
  text = page({"about": about, "rows": rows, "episodes": episodes})
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(text, encoding="utf-8")
  except OSError as error:
    raise RuntimeError(f"cannot write {folder}: {error.strerror}") from error
  return len(rows)


def _chosen(run, uids, where, most: int) -> list[int]:
  if uids is None:
    hidden = {"label": "not excluded"} if "label" not in where else {}
    return listing.numbers(run.index, {**where, **hidden}, most)
  places = ", ".join("?" * len(uids))
  rows = run.index.query(
    f"SELECT id FROM episodes WHERE uid IN ({places}) AND NOT hidden "
    "ORDER BY id",
    *uids,
  )
  return [number for (number,) in rows]


def _row(run, number: int) -> dict[str, Any]:
  names = ", ".join(f"episodes.{name}" for name in _COLUMNS[:-2])
  (row,) = run.index.query(
    f"SELECT {names}, verdict, note FROM episodes LEFT JOIN labels ON "
    "labels.uid = episodes.uid AND labels.split = episodes.split "
    "WHERE episodes.id = ?",
    number,
  )
  return {"run": run.number, **dict(zip(_COLUMNS, row, strict=True))}


def _without_paths(found: dict[str, Any]) -> dict[str, Any]:
  """Faults may name files of this machine, which a shared page does not."""
  credit = found["credit"]
  if "why" in credit:
    credit = {"why": "not part of this page"}
  without = "token ids are shown as numbers" * bool(found["without_text"])
  return found | {"credit": credit, "without_text": without}


def page(data: Mapping[str, Any]) -> str:
  """The page with its data.

  Args:
    data: `about`, `rows` and `episodes`; see `api.js`.
  """
  files = app.page_files()
  script = "\n".join(_module(name, files[name]) for name in _SCRIPTS)
  style = files["style.css"]
  for name, text in (("script", script), ("style", style)):
    if f"</{name}" in text:
      raise AssertionError(f"the page's own files end a {name}")
  policy = (
    f"default-src 'none'; script-src '{_digest(script)}'; "
    f"style-src '{_digest(style)}'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
  )
  head = (
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    f"    <style>{style}</style>\n"
  )
  body = (
    f'<script type="application/json" id="data">{inlined(data)}</script>\n'
    f'    <script type="module">{script}</script>\n  '
  )
  html = files["index.html"]
  html = re.sub(r' *<link rel="stylesheet".*\n', "", html)
  html = re.sub(r' *<script type="module" src.*\n', "", html)
  html = re.sub(r' *<meta name="token".*\n', "", html)
  html = html.replace("  </head>", f"    {head}  </head>", 1)
  return html.replace("</body>", f"  {body}</body>", 1)


def _module(name: str, text: str) -> str:
  """A module as a function, whose result is what it exports.

  Browsers load no module from a file of the disk.
  """
  exports = ", ".join(_EXPORT.findall(text))
  text = _IMPORT.sub(r"const \1 = of_\2;", _EXPORT.sub("", text))
  stem = name.removesuffix(".js")
  return f"const of_{stem} = (() => {{\n{text}return {{ {exports} }};\n}})();"


def inlined(data: Any) -> str:
  """JSON that may stand within a script element.

  Nothing in it looks like markup to whoever reads the page, and it is ASCII.
  """
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  for letter in "<>&":
    text = text.replace(letter, f"\\u{ord(letter):04x}")
  return text


def _digest(text: str) -> str:
  found = hashlib.sha256(text.encode()).digest()
  return f"sha256-{base64.b64encode(found).decode()}"
