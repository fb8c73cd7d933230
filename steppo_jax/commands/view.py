"""The command `view`: runs looked at in the browser."""

import argparse
import contextlib
import os
import pathlib
import socket
import webbrowser
from collections.abc import Callable
from typing import Any

from steppo_jax import types
from steppo_jax.commands import terminal

_EPILOG = """\
A RUN is a folder that `train` made, a dataset of recorded trajectories, or the
file of a pool. It may be under way: the page follows it. docs/viewer.md says
which options of a run keep its episodes.

examples:
  python -m steppo_jax view runs/household_steppo-seed*
  python -m steppo_jax view runs/my_run --export shared --where success=0
"""


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program; see `serve.register`."""
  view = add(
    "view", _view, "look at runs and their episodes in the browser",
    epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  view.add_argument("runs", nargs="+", metavar="RUN", help="what to look at")
  view.add_argument(
    "--port", type=int, default=0, help="of this machine; 0 takes a free one"
  )
  view.add_argument(
    "--no-browser", action="store_true", help="print the address alone"
  )
  view.add_argument(
    "--cache", metavar="FOLDER",
    help="of the indices (steppo_jax/view in the user's cache folder)",
  )  # fmt: skip
  view.add_argument(
    "--tokenizer", help="of the token ids, in place of the run's own"
  )
  view.add_argument("--weights", help="whose tokenizer it is")
  view.add_argument(
    "--export", metavar="FOLDER",
    help="write episodes as a page that opens from the disk, and end",
  )  # fmt: skip
  view.add_argument(
    "--episodes", nargs="+", metavar="UID", help="these, for --export"
  )
  view.add_argument(
    "--where", nargs="+", metavar="NAME=VALUE", default=[],
    help="those that filters leave, for --export: task, family, success, "
    "at_min, at_max, reward_min, text, ... as in the page's address",
  )  # fmt: skip
  view.add_argument(
    "--most", type=int, default=100, help="episodes of --export (100)"
  )


def _view(args, _) -> None:
  try:
    import uvicorn

    from steppo_jax.serving import background
    from steppo_jax.viewer import app, runs
  except ImportError as error:
    raise RuntimeError(
      f"view needs the package {error.name}: pip install 'steppo_jax[view]'"
    ) from error
  if not args.export and (args.episodes or args.where):
    raise ValueError("--episodes and --where belong to --export")
  with contextlib.ExitStack() as stack:
    shown = []
    for number, path in enumerate(args.runs):
      shown.append(
        runs.Run(
          number, pathlib.Path(path), cache=_cache(args.cache),
          load_tokenizer=lambda facts: _tokenizer(args, facts),
        )
      )  # fmt: skip
      stack.callback(shown[-1].close)
    if args.export:
      _export(args, shown)
      return
    listening = stack.enter_context(contextlib.closing(_listen(args.port)))
    url = background.url_of(listening)
    config = uvicorn.Config(
      app.Viewer(shown).app(), log_level="warning", ws="none",
      timeout_graceful_shutdown=1,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
      if not args.no_browser:
        webbrowser.open(url)
      _step_back()  # Behind the browser, which would inherit it.
      # A script that starts the viewer waits for this line.
      print(f"listening on {url}", flush=True)
      uvicorn.Server(config).run([listening])


def _step_back() -> None:
  """Runs on this machine go first, as far as can be asked for.

  Linux may share out the time among sessions (`autogroup`), and only then among
  the processes of each. A session that was begun by somebody else, such as by
  the shell of a terminal, is left as it is.
  """
  os.nice(19)
  if os.getsid(0) == os.getpid():
    with contextlib.suppress(OSError):
      pathlib.Path("/proc/self/autogroup").write_text("19")


def _listen(port: int) -> socket.socket:
  try:
    if not 0 <= port < 1 << 16:
      raise OverflowError("a port is a number from 0 to 65535")
    return socket.create_server(("127.0.0.1", port), backlog=128)
  except (OSError, OverflowError) as error:
    raise ValueError(f"--port={port} cannot be listened on: {error}") from error


def _cache(folder: str | None) -> pathlib.Path:
  if folder is not None:
    return pathlib.Path(folder)
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "steppo_jax" / "view"


def _tokenizer(args, facts: dict[str, Any]) -> types.Tokenizer:
  """The tokenizer of a run's options, or that of a digest."""
  from steppo_jax.tokenizer import loading, sentencepiece_tokenizer

  name = args.tokenizer or facts.get("tokenizer")
  weights = args.weights or facts.get("weights")
  known = (loading.BYTES, *sentencepiece_tokenizer.BUNDLED)
  if name is None and args.weights:
    name = loading.OWN_TOKENIZER
  if name is None:
    for bundled in known:
      found = loading.load(bundled)
      if found.digest == facts.get("digest"):
        return found
    raise ValueError("name the tokenizer with --tokenizer")
  if name in known or pathlib.Path(name).exists():
    return loading.load(name)
  # What weights or a package bring with them is found by parts that need JAX.
  terminal.prepare_jax()
  from steppo_jax.pretrained import policy

  return policy.load_tokenizer(name, weights, facts.get("base"))


def _export(args, shown) -> None:
  from steppo_jax.viewer import export

  where = {}
  for text in args.where:
    name, equals, value = text.partition("=")
    if not (name and equals):
      raise ValueError(f"--where takes NAME=VALUE, got {text!r}")
    where[name] = value
  count = export.write(
    pathlib.Path(args.export), shown, uids=args.episodes, where=where,
    most=args.most,
  )  # fmt: skip
  terminal.say(f"{count} episodes written: open {args.export}/index.html")
