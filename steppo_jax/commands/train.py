"""The command `train`, in one process or in several."""

import argparse
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from steppo_jax.commands import terminal
from steppo_jax.processes import exchange, hosts, signals

_ABOUT = """\
The same command runs on every host, in one folder that all see. TPU VMs, GKE,
Slurm and Open MPI tell JAX where the others are (--many-hosts); elsewhere give
--coordinator, --processes and --process.
"""


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """
  train = add("train", run, "train an agent", add_help=False)
  terminal.add_experiment(train)
  _add_flags(train)


def _add_flags(parser: argparse.ArgumentParser) -> None:
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


def _join(args: argparse.Namespace, handler: signals.Handler) -> hosts.Hosts:
  """Connects the processes that the flags speak of; see `join.join`."""
  given = (args.coordinator, args.processes, args.process)
  if not args.many_hosts and given == (None, None, None):
    return hosts.ALONE
  if args.many_hosts and given != (None, None, None):
    raise ValueError(
      "--many-hosts finds the processes by itself: leave out --coordinator, "
      "--processes and --process"
    )
  from steppo_jax.processes import join  # JAX is loaded with it.

  where = join.Addresses(*given, args.host_port, args.host_limit)
  return join.join(where, handler)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Trains, as the experiment and the assignments say."""
  if args.experiment and {"-h", "--help"} & set(rest):
    flags = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    _add_flags(flags)
    print(flags.format_help())  # The options of the experiment follow.
  with signals.Handler() as handler:
    _run(args, rest, handler)


def _run(args, rest, handler) -> None:
  terminal.prepare_jax(several=args.many_hosts or args.processes is not None)
  joined = args.hosts = _join(args, handler)
  options = terminal.options(args, rest)
  from steppo_jax.storage import folder as run_folder
  from steppo_jax.training import config

  name = f"{pathlib.Path(args.experiment).stem}-seed{options.seed}"
  joined.agree("the number of devices", joined.devices)
  joined.agree("the options", run_folder.options_of(options))
  supervised = isinstance(options, config.SupervisedRun)
  if supervised and joined.count > 1:
    raise ValueError("a supervised run takes one process")
  if not supervised:
    options.check_training()
  # Before the bar: while TFDS is loaded, imports of other threads fail
  # (findings/etils_lazy_imports_reach_other_threads.sh).
  from steppo_jax.storage import events
  from steppo_jax.training import imitation, train

  folder = _open_folder(options, name, joined)
  total = options.training.num_steps if supervised else options.num_updates
  terminal.say(f"run folder: {folder}")
  terminal.say(f"devices: {_devices()}")
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

    with (
      terminal.Failures(progress) as failures,
      run_folder.removed_if_refused(folder, joined.is_first),
    ):
      if supervised:
        imitation.train(options, folder, on_update=on_update, handler=handler)
      else:
        train.train(
          options,
          folder,
          on_update=on_update,
          on_episode=on_episode,
          on_failure=failures,
          handler=handler,
          age_s=events.process_age(),
          hosts=joined,
        )
  joined.close()
  if joined.is_first:
    _report(folder)


def _open_folder(options: Any, name: str, joined: hosts.Hosts) -> pathlib.Path:
  """The run's folder, made by the first process and seen by all."""
  from steppo_jax.storage import folder as run_folder

  opened = functools.partial(
    run_folder.open_folder, options, name, run_folder.command_line()
  )
  joined.first("the run folder", opened)
  path = run_folder.path_of(options, name)
  with run_folder.removed_if_refused(path, joined.is_first):
    run_folder.check_shared(path, joined)
  return opened()  # For the others, who have seen that it is there.


def _devices() -> str:
  """What the run computes on: JAX takes a CPU where it gets nothing better."""
  import jax

  every, own = jax.devices(), jax.local_devices()
  found = f"{len(every)} {own[0].platform} ({own[0].device_kind})"
  if len(own) < len(every):
    found += f", {len(own)} of this process"
  return found


def _report(folder: pathlib.Path) -> None:
  from steppo_jax.reports import report

  print(pathlib.Path(report.report(folder)).read_text())
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
