"""The command `evaluate`: plays panels of tasks with one policy."""

import argparse
import dataclasses
from collections.abc import Callable

from steppo_jax.commands import terminal


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """
  _add_arguments(
    add("evaluate", _evaluate, "evaluate a policy", add_help=False)
  )


def _add_arguments(run: argparse.ArgumentParser) -> None:
  terminal.add_experiment(run)
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
    "--record", metavar="FOLDER/NAME",
    help="dataset of the episodes, of the form that record_format=... says",
  )  # fmt: skip


def _evaluate(args, rest) -> None:
  options = terminal.options(args, rest)
  from steppo_jax.commands import show
  from steppo_jax.training import config, evaluate

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
    on_failure = terminal.Failures(progress)

    def on_finish(trajectory):
      progress.advance(bar)
      if trajectory.error is not None:
        on_failure(trajectory)

    found = evaluate.evaluate(
      options,
      samples=args.samples,
      ks=_whole_numbers("--pass-at", args.pass_at),
      splits=args.split.split(",") if args.split else (),
      output=args.output,
      record=args.record,
      on_start=lambda total: progress.update(bar, total=total),
      on_finish=on_finish,
    )
  show.evaluation(found)
  failed = sum(own["count"] for own in found.failures().values())
  if failed == len(found.episodes) > 0:
    raise RuntimeError(f"all {failed} episodes failed: nothing was evaluated")


def _whole_numbers(option: str, text: str) -> list[int]:
  try:
    return [int(part) for part in text.split(",")]
  except ValueError as error:
    raise ValueError(
      f"{option} takes whole numbers such as 1,4,16, got {text!r}"
    ) from error


def _given(changes):
  return {name: value for name, value in changes.items() if value is not None}
