"""The command `train`, in one process or in several."""

import argparse
import functools
import pathlib
from collections.abc import Sequence

from steppo_jax import exchange, signals, terminal

_ABOUT = """\
The same command runs on every host, in one folder that all see. TPU VMs, GKE,
Slurm and Open MPI tell JAX where the others are (--many-hosts); elsewhere give
--coordinator, --processes and --process.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags to a command."""
  group = parser.add_argument_group("several processes", _ABOUT)
  group.add_argument(
    "--many-hosts", action="store_true", help="JAX finds the other processes"
  )
  group.add_argument(
    "--coordinator", metavar="HOST:PORT", help="of the first process"
  )
  group.add_argument("--processes", type=int, help="how many there are")
  group.add_argument("--process", type=int, help="number of this one, from 0")
  group.add_argument(
    "--host-port", type=int, default=0, metavar="PORT",
    help="where the first process listens, the coordinator's port + 1 without",
  )  # fmt: skip
  group.add_argument(
    "--host-limit", type=float, default=exchange.LIMIT_S, metavar="SECONDS",
    help="a process that comes so much later than the first is given up "
    "(%(default)g)",
  )  # fmt: skip


def _join(args: argparse.Namespace, handler: signals.Handler):
  """Connects the processes that the flags speak of; see `hosts.join`."""
  from steppo_jax import hosts  # JAX is loaded with it.

  given = (args.coordinator, args.processes, args.process)
  if not args.many_hosts and given == (None, None, None):
    return hosts.ALONE
  if args.many_hosts and given != (None, None, None):
    raise ValueError(
      "--many-hosts finds the processes by itself: leave out --coordinator, "
      "--processes and --process"
    )
  place = hosts.Place(*given, args.host_port, args.host_limit)
  return hosts.join(place, handler)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Trains, as the experiment and the assignments say."""
  if {"-h", "--help"} & set(rest):
    flags = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    add_flags(flags)
    print(flags.format_help())  # The options of the experiment follow.
  with signals.Handler() as handler:
    _run(args, rest, handler)


def _run(args, rest, handler) -> None:
  terminal.quiet_jax()
  hosts = args.hosts = _join(args, handler)
  options = terminal.options(args, rest)
  from steppo_jax import config, report, run_folder

  name = f"{pathlib.Path(args.experiment).stem}-seed{options.seed}"
  hosts.agree("the number of devices", hosts.devices)
  hosts.agree("the options", run_folder.options_of(options))
  opened = functools.partial(
    run_folder.open_folder, options, name, run_folder.command_line()
  )
  supervised = isinstance(options, config.SupervisedRun)
  if supervised and hosts.count > 1:
    raise ValueError("a supervised run takes one process")
  folder = hosts.first("the run folder", opened) or opened()
  total = options.training.num_steps if supervised else options.num_updates
  terminal.say(f"run folder: {folder}")
  with terminal.progress() as progress:
    bar = progress.add_task("updates", total=total, info="starting")
    episodes = [0]

    def on_update(done, found):
      progress.update(bar, completed=done, info=_line(found))
      if "eval/success" in found:
        progress.console.print(_evaluation(done, found), markup=False)

    def on_episode(_):
      episodes[0] += 1
      progress.update(bar, episodes=episodes[0])

    if supervised:
      from steppo_jax import imitation

      imitation.train(options, folder, on_update=on_update)
    else:
      from steppo_jax import events, train

      train.train(
        options,
        folder,
        on_update=on_update,
        on_episode=on_episode,
        handler=handler,
        age_s=events.process_age(),
        hosts=hosts,
      )
  hosts.close()
  if not hosts.is_first:
    return
  summary = report.report(folder)
  print(pathlib.Path(summary).read_text())
  terminal.say(f"plot: {folder / 'report.png'}")


def _line(found) -> str:
  """The few numbers shown beside the bar."""
  parts = []
  for name, label, form in (
    ("rollout/success", "success", ".2f"),
    ("rollout/invalid_share", "invalid", ".2f"),
    ("rollout/episodes_per_s", "episodes/s", ".0f"),
    ("tokens_per_s", "tokens/s", ".0f"),
    ("supervised/loss", "loss", ".3f"),
  ):
    if name in found:
      parts.append(f"{label} {found[name]:{form}}")
  return "  ".join(parts)


def _evaluation(done, found) -> str:
  return (
    f"update {done:4d}  {found['minutes']:5.1f} min  unseen success "
    f"{found['eval/success']:.3f} [{found['eval/success_low']:.3f}, "
    f"{found['eval/success_high']:.3f}]  invalid "
    f"{found['eval/invalid_share']:.3f}"
  )
