"""The command `pool`: the episodes that agents have played."""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Sequence

from steppo_jax import files
from steppo_jax.commands import terminal
from steppo_jax.storage import folder as run_folder

_EPILOG = """\
examples:
  python -m steppo_jax pool runs/my_run
  python -m steppo_jax pool runs/my_run --state failed
  python -m steppo_jax pool runs/my_run label 0-3-1 0-3-2 --set good=yes
  python -m steppo_jax pool runs/my_run exclude --label good=no
  python -m steppo_jax pool runs/my_run export --jsonl episodes.jsonl
  python -m steppo_jax pool runs/my_run export --tfds data/agents
  python -m steppo_jax pool served.sqlite export --consume --jsonl day1.jsonl
"""


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program; see `serve.register`."""
  pool = add(
    "pool", _pool, "list, label, exclude and export agents' episodes",
    epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  pool.add_argument("run", metavar="RUN", help="a run's folder, or a pool")
  pool.add_argument(
    "action", nargs="?", default="list",
    choices=("list", "label", "exclude", "export"),
    help="what is done with the episodes (%(default)s); export leaves out what "
    "was excluded, unless it is asked for",
  )  # fmt: skip
  pool.add_argument("uids", nargs="*", metavar="UID", help="these episodes")
  pool.add_argument("--task", help="those of a task")
  pool.add_argument("--label", metavar="NAME=VALUE", help="with a label")
  pool.add_argument("--version", type=int, help="of weights of an update")
  pool.add_argument("--state", help="issued, running, finished, ready, ...")
  pool.add_argument(
    "--channel", choices=("train", "validation"), help="only these episodes"
  )
  pool.add_argument(
    "--set", metavar="NAME=VALUE", action="append", default=[],
    help="a label to add",
  )  # fmt: skip
  pool.add_argument("--jsonl", metavar="FILE", help="one line an episode")
  pool.add_argument("--tfds", metavar="FOLDER", help="a dataset; see docs")
  pool.add_argument(
    "--atif", metavar="FOLDER", help="a document an episode, as Harbor has them"
  )
  pool.add_argument(
    "--tokenizer", help="of the token ids, for --tfds and --atif"
  )
  pool.add_argument("--weights", help="whose tokenizer it is")
  pool.add_argument(
    "--consume", action="store_true",
    help="export whole groups that have ended, each once, and take them out; "
    "of a served pool, with --jsonl FILE",
  )  # fmt: skip


def _pool(args, _) -> None:
  from steppo_jax.rollout import pool as pool_lib
  from steppo_jax.rollout import pool_entries

  path = pathlib.Path(args.run)
  if path.is_dir():
    path /= run_folder.POOL_NAME
  if not path.is_file():
    raise ValueError(f"{args.run} holds no pool: {path} is missing")
  if args.state not in (None, *pool_lib.STATES):
    raise ValueError(
      f"--state={args.state} is none of {', '.join(pool_lib.STATES)}"
    )
  with pool_lib.Pool(path) as pool:
    found = pool_entries.entries(
      pool, task=args.task, label=_pair(args.label), version=args.version,
      state=args.state, channel=args.channel,
    )  # fmt: skip
    known = {entry.uid: entry for entry in found}
    missing = [uid for uid in args.uids if uid not in known]
    if missing:
      raise ValueError(f"the pool has no such episode: {', '.join(missing)}")
    if args.consume:
      _consume(pool, args)
      return
    chosen = args.uids or list(known)
    if args.action == "export" and not (args.uids or args.state or args.label):
      chosen = [uid for uid in chosen if not _excluded(known[uid])]
    {
      "list": lambda: _list(pool, [known[uid] for uid in chosen]),
      "label": lambda: _label(pool, chosen, args.set),
      "exclude": lambda: _exclude(pool, chosen, args),
      "export": lambda: _export(pool, chosen, args),
    }[args.action]()


def _excluded(entry) -> bool:
  """Whether it was kept from the learner, or somebody said so too late."""
  said = entry.labels.get("verdict")
  return entry.cause == "excluded" or said == "exclude"


def _pair(text: str | None) -> tuple[str, str] | None:
  if text is None:
    return None
  name, equals, value = text.partition("=")
  if not (name and equals):
    raise ValueError(f"expected NAME=VALUE, got {text!r}")
  return name, value


def _list(pool, entries) -> None:
  from steppo_jax.rollout import pool_entries

  rows = [("uid", "state", "task", "steps", "reward", "version", "labels")]
  for one in entries:
    state = f"{one.state}:{one.cause}" if one.cause else one.state
    labels = ",".join(f"{k}={v}" for k, v in sorted(one.labels.items()))
    values = one.uid, state, one.task.uid, one.steps, one.reward, one.version
    rows.append(tuple("-" if x is None else str(x) for x in (*values, labels)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = (x.ljust(n) for x, n in zip(row, widths, strict=True))
    print("  ".join(cells).rstrip())
  counts = pool_entries.counts(pool)
  terminal.say(", ".join(f"{n} {name}" for name, n in counts.items() if n))


def _label(pool, uids: Sequence[str], pairs: Sequence[str]) -> None:
  from steppo_jax.rollout import pool_entries

  if not pairs:
    raise ValueError("label needs --set NAME=VALUE")
  pool_entries.label(pool, uids, dict(_pair(pair) for pair in pairs))
  terminal.say(f"{len(uids)} episodes labelled")


def _exclude(pool, uids: Sequence[str], args) -> None:
  from steppo_jax.rollout import pool_entries

  asked = args.uids, args.task, args.label, args.version, args.state
  if not any(x is not None and x != [] for x in asked):
    raise ValueError("exclude needs episodes, or what they have in common")
  pool_entries.exclude(pool, uids)
  terminal.say(f"{len(uids)} episodes excluded")


def _export(pool, uids: Sequence[str], args) -> None:
  from steppo_jax.rollout import pool_entries

  if not (args.jsonl or args.tfds or args.atif):
    raise ValueError(
      "export needs --jsonl FILE, --tfds FOLDER or --atif FOLDER"
    )
  found = pool_entries.trajectories(pool, uids)
  if args.jsonl:
    known = {entry.uid: entry for entry in pool_entries.entries(pool)}
    with contextlib.ExitStack() as stack:
      out = sys.stdout
      if args.jsonl != "-":
        try:
          out = stack.enter_context(open(args.jsonl, "w", encoding="utf-8"))
        except OSError as error:
          raise ValueError(f"--jsonl={args.jsonl}: {error.strerror}") from error
      _write_lines(out, found, known)
  for form in ("tfds", "atif"):
    folder = getattr(args, form)
    if folder:
      _write_dataset(found, args, pathlib.Path(folder), form)
  terminal.say(f"{len(found)} episodes exported")


def _write_lines(out, found, known) -> None:
  from steppo_jax.rollout import pool_entries

  for one in found:
    line = pool_entries.to_json(one, known[one.uid])
    out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _consume(pool, args) -> None:
  """Exports the groups that have ended, and takes them out of the pool.

  They are leased to the file, by its name, before it is written, and consumed
  when it is on the disk. After a kill in between the same command goes on with
  these groups, and an export to another file gets none of them.
  """
  from steppo_jax.rollout import pool as pool_lib
  from steppo_jax.rollout import pool_entries

  _check_consume(pool, args)
  path = pathlib.Path(args.jsonl).absolute()
  owner = f"export {path}"
  if path.exists() and owner not in pool.owners():
    # A kill may have come before this.
    pool.forget(owner)
    raise ValueError(f"--jsonl={args.jsonl} exists: choose another file")
  found = pool.lease(
    owner, pool_lib.FOREVER_S, groups=1 << 30, channel=args.channel
  )
  if not found:
    terminal.say("no group has ended: nothing to export")
    return
  known = {
    entry.uid: entry._replace(state="consumed")
    for entry in pool_entries.entries(pool)
  }
  kept = [one for one in found if not _excluded(known[one.uid])]
  try:
    with files.replacing(path) as new, open(new, "w", encoding="utf-8") as out:
      _write_lines(out, kept, known)
  except OSError as error:
    raise ValueError(f"--jsonl={args.jsonl}: {error.strerror}") from error
  pool.consume(owner)
  pool.forget(owner)
  terminal.say(
    f"{len(kept)} episodes exported and taken out of the pool, "
    f"{len(found) - len(kept)} excluded ones taken out"
  )


def _check_consume(pool, args) -> None:
  """Refuses what cannot be exported once and for all."""
  if args.action != "export":
    raise ValueError(f"--consume goes with export, not with {args.action}")
  if pool.file.path.with_name(run_folder.FACTS_NAME).is_file():
    raise ValueError(
      f"--consume: {pool.file.path} belongs to a run, which trains on it"
    )
  chosen = args.uids, args.task, args.label, args.version, args.state
  if any(x is not None and x != [] for x in chosen):
    raise ValueError(
      "--consume takes whole groups: leave episodes, --task, --label, "
      "--version and --state out"
    )
  if args.jsonl in (None, "-") or args.tfds or args.atif:
    raise ValueError("--consume needs --jsonl FILE, and no other output")


def _write_dataset(found, args, folder: pathlib.Path, form: str) -> None:
  from steppo_jax.datasets import trajectories
  from steppo_jax.pretrained import policy

  options = {"tokenizer": args.tokenizer, "weights": args.weights}
  config = pathlib.Path(args.run) / run_folder.CONFIG_NAME
  if config.is_file():
    told = files.read_object(config)
    options = {name: x or told.get(name) for name, x in options.items()}
    options["base"] = told.get("base")
  if not options["tokenizer"]:
    raise ValueError(f"--{form} needs --tokenizer, that of the token ids")
  tokenizer = policy.load_tokenizer(
    options["tokenizer"], options["weights"], options.get("base")
  )
  trajectories.write(
    folder.parent, folder.name, {"train": found}, tokenizer, form
  )
