"""The command `data`: prepares task lists and demonstrations."""

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Callable

_EPILOG = """\
The dataset's folder is printed. It holds a copy of everything that its tasks
need, with a checksum of every file, and can be moved:

  python -m steppo_jax data webshop --data-dir DIR --option by=index
  python -m steppo_jax data search_qa --data-dir DIR --split train validation
  python -m steppo_jax data search_qa --split dev --published \\
    hotpot_dev_distractor_v1.json musique_ans_v1.0_dev.jsonl
  python -m steppo_jax data paper_search --size small --episodes 1000
  python -m steppo_jax data household --demonstrations --episodes 2000

A run takes its tasks from there:

  python -m steppo_jax train EXPERIMENT env.name=webshop env.task_set=FOLDER
"""


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """
  data = add(
    "data",
    lambda args, _: print(run(args)),
    "make a dataset of tasks or of demonstrations (TFDS, ArrayRecord)",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  data.add_argument("env", help="environment, such as webshop")
  data.add_argument("--data-dir", help="folder of real tasks, as downloaded")
  data.add_argument(
    "--output", default="runs/data", help="folder of datasets (%(default)s)"
  )
  data.add_argument(
    "--published", nargs="+", metavar="FILE",
    help="search_qa: HotpotQA's, 2WikiMultihopQA's or MuSiQue's own files, in "
    "place of --data-dir; --split names their split",
  )  # fmt: skip
  data.add_argument(
    "--aliases", metavar="FILE", help="2WikiMultihopQA's id_aliases.json"
  )
  data.add_argument("--split", nargs="+", help="splits; all without")
  data.add_argument("--episodes", type=int, help="tasks of each split")
  data.add_argument(
    "--size", nargs="+", default=["small"], help="of generated worlds"
  )
  data.add_argument(
    "--option", nargs="+", default=[], metavar="NAME=VALUE",
    help="the environment's own options, such as by=index",
  )  # fmt: skip
  data.add_argument(
    "--demonstrations", action="store_true",
    help="of the environment's expert, in place of tasks; 2000 of train "
    "without --episodes and --split",
  )  # fmt: skip
  data.add_argument("--seed", type=int, default=0, help="of demonstrations")
  data.add_argument(
    "--detours", type=float, default=0.0,
    help="household: mean number of places that the expert searches",
  )  # fmt: skip
  data.add_argument(
    "--noise",
    type=float,
    default=0.0,
    help="household: chance of a random command",
  )


def run(args: argparse.Namespace) -> pathlib.Path:
  """Prepares what the options say; returns the dataset's folder.

  Raises:
    ValueError: an option does not fit.
    RuntimeError: the dataset that is there is broken.
  """
  return _demonstrations(args) if args.demonstrations else _task_set(args)


def _task_set(args) -> pathlib.Path:
  from steppo_jax.datasets import tasks as datasets_tasks
  from steppo_jax.envs import base

  if len(args.size) > 1:
    raise ValueError("tasks have one --size; only demonstrations mix several")
  for name in ("seed", "detours", "noise"):
    if getattr(args, name):
      raise ValueError(f"--{name} belongs to --demonstrations")
  if args.aliases and not args.published:
    raise ValueError("--aliases belongs to --published")
  with contextlib.ExitStack() as stack:
    data_dir = args.data_dir
    if args.published:
      data_dir = stack.enter_context(tempfile.TemporaryDirectory())
      _convert(args, data_dir)
    return datasets_tasks.prepare(
      args.env,
      args.output,
      data_dir=data_dir,
      size=args.size[0],
      options=base.parse_options(args.option),
      splits=args.split or (),
      count=args.episodes,
    )


def _convert(args, folder: str) -> None:
  """Makes a folder of questions and paragraphs of published files."""
  from steppo_jax.envs.questions import data as questions_data

  if args.env != "search_qa" or args.data_dir:
    raise ValueError(
      "--published is for search_qa alone, and takes the place of --data-dir"
    )
  if len(args.split or ()) != 1:
    raise ValueError("--published needs one --split, the name of their split")
  questions_data.convert(
    args.published, folder, split=args.split[0], aliases=args.aliases
  )


def _demonstrations(args) -> pathlib.Path:
  from steppo_jax.datasets import demonstrations, options

  if args.data_dir:
    raise ValueError(
      "demonstrations are of generated worlds: leave --data-dir out"
    )
  split = args.split or ["train"]
  if len(split) > 1:
    raise ValueError("demonstrations have one --split")
  return demonstrations.prepare(
    args.output,
    options.Demonstrations(
      split=split[0],
      sizes=tuple(args.size),
      num_episodes=2000 if args.episodes is None else args.episodes,
      seed=args.seed,
      detours=args.detours,
      noise=args.noise,
      env=args.env,
      options=tuple(args.option),
    ),
  )
