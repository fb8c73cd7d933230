"""Lets a person play in the terminal: `python -m steppo_jax play household`."""

import argparse
from collections.abc import Callable

from rich import console as rich_console

_HELP = "commands: what you can do here · hint: a next step · undo · quit"


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """
  play = add("play", _play, "play a game in the terminal")
  play.add_argument("game", choices=("household",), help="which is played")
  play.add_argument(
    "--size", default="small",
    help="of a generated room: tiny, small, medium or full (%(default)s)",
  )  # fmt: skip
  play.add_argument("--seed", type=int, default=0, help="of the room")
  play.add_argument(
    "--split", default="train", help="that the room is from (%(default)s)"
  )
  play.add_argument("--data-dir", help="folder of ALFWorld's games")


def _play(args, _) -> None:
  play_household(
    size=args.size, seed=args.seed, split=args.split, data_dir=args.data_dir
  )


def play_household(
  *,
  size: str = "small",
  seed: int = 0,
  split: str = "train",
  data_dir: str | None = None,
  ask: Callable[[str], str] = input,
  console: rich_console.Console | None = None,
) -> bool:
  """Plays one household game.

  Args:
    size: Size of a generated game; not read with `data_dir`.
    seed: Which game; with `data_dir`, its number in the split.
    split: "train", "valid_seen" or "valid_unseen".
    data_dir: Folder of ALFWorld's real games; a generated game without.
    ask: Reads a line after showing a prompt.
    console: Where the game is shown.

  Returns:
    Whether the game was won.

  Raises:
    ValueError: there is no such game.
  """
  # NumPy is loaded with them, which `--help` can do without.
  from steppo_jax.envs.household import alfworld, worlds
  from steppo_jax.envs.household import env as household_env

  out = console or rich_console.Console(highlight=False)
  if data_dir is None:
    task = worlds.generate(seed, split=split, size=size)
  else:
    tasks = alfworld.load_tasks(data_dir, split)
    if not 0 <= seed < len(tasks):
      raise ValueError(
        f"seed must be below {len(tasks)}, the number of games of {split!r}, "
        f"got {seed}"
      )
    task = tasks[seed]
  env = household_env.HouseholdEnv()
  out.print(task.uid, style="dim", markup=False)
  out.print(_HELP, style="dim", markup=False)
  out.print(env.reset(task, 0).observation, markup=False)
  return _loop(env, task, ask, out)


def _loop(env, task, ask, out):
  steps, past = 0, []
  while not env.game.won:
    try:
      text = ask("> ").strip()
    except (EOFError, KeyboardInterrupt):
      text = "quit"
    if text == "quit":
      out.print("You leave the game.", markup=False)
      return False
    if text == "commands":
      out.print("\n".join(env.admissible_commands), markup=False)
    elif text == "hint":
      out.print(env.game.plan()[0], markup=False)
    elif text == "undo":
      if past:
        env.game.restore(past.pop())
        steps -= 1
      out.print(env.game.anchor(), markup=False)
    elif text:
      past.append(env.game.save())
      out.print(env.step(text).observation, markup=False)
      steps += 1
  from steppo_jax.envs.household import env as household_env

  shortest = household_env.golden_steps(task)
  out.print(f"You won in {steps} steps; {shortest} suffice.", markup=False)
  return True
