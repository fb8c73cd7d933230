"""The command `credit`: what updates of a run made of their episodes."""

import argparse
import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator

from steppo_jax.commands import terminal

_ABOUT = """\
Computes for every step and token of an update what the learner computed (value,
TD error, advantage, target, ratio, log-probability, entropy), from the episodes
in the run's folder and the checkpoint that the update began with, and writes it
to RUN/credit. The first update is number 0.
"""


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program; see `serve.register`."""
  credit = add("credit", _credit, "compute what each step was worth")
  credit.description = _ABOUT
  credit.add_argument("run", metavar="RUN", help="folder of a run")
  credit.add_argument(
    "--update", type=int, action="append", required=True, metavar="U",
    help="number of an update, from 0; may be given several times",
  )  # fmt: skip
  credit.add_argument(
    "--json", action="store_true",
    help='progress as lines {"done": i, "total": n} on standard output',
  )  # fmt: skip


def _credit(args, _) -> None:
  terminal.prepare_jax()
  from steppo_jax.storage import credit as credit_files
  from steppo_jax.training import credit

  with _progress(args.json) as on_progress:
    updates = list(dict.fromkeys(args.update))
    for found in credit.compute(args.run, updates, on_progress):
      path = credit_files.path_of(args.run, found.update)
      terminal.say(_told(path, found))


def _told(path: pathlib.Path, found) -> str:
  text = f"update {found.update}: {len(found.episodes)} episodes in {path}"
  if found.checkpoint_update == found.update:
    return f"{text}, with the weights that the update began with"
  return (
    f"{text}, with the weights of {found.checkpoint_update} updates: those of "
    f"{found.update} are not kept, so that numbers of policy and critic differ "
    "from what the update saw"
  )


@contextlib.contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[int, int], None]]:
  if as_json:
    yield lambda done, total: print(
      json.dumps({"done": done, "total": total}), flush=True
    )
    return
  with terminal.progress() as progress:
    bar = progress.add_task("credit", total=None, info="")
    yield lambda done, total: progress.update(bar, completed=done, total=total)
