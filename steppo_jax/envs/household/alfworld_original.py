"""ALFWorld's own engine, as a check of ours; needs the extra `alfworld`.

TextWorld holds global state and steps about a thousand times more slowly than
`household`; it is meant for `env.workers`, one episode a process.
"""

import json
import pathlib
import tempfile

from steppo_jax import types
from steppo_jax.envs.household import alfworld

DIALECTS = ("move", "put")


def load_tasks(data_dir: str | pathlib.Path, split: str) -> list[types.Task]:
  """The games of an ALFWorld release, for both engines.

  Args:
    data_dir: A folder that is or holds `json_2.1.1` with `game.tw-pddl` files.
    split: "train", "valid_seen" or "valid_unseen".

  Returns:
    The tasks of `alfworld.load_tasks` under the same uids, whose payload also
    has `game_file`.

  Raises:
    ValueError: see `alfworld.load_tasks`, or a game has no `game.tw-pddl`.
  """
  folder = pathlib.Path(data_dir).expanduser().resolve()
  root = folder / "json_2.1.1"
  root = root if root.is_dir() else folder
  tasks = []
  for task in alfworld.load_tasks(folder, split):
    path = root / task.uid.removeprefix("alfworld/") / "game.tw-pddl"
    if not path.is_file():
      raise ValueError(
        f"{path} is missing: ALFWorld's engine plays releases only, and "
        "env.name=alfworld plays all"
      )
    payload = {**task.payload, "game_file": str(path)}
    tasks.append(
      types.Task(task.uid, "alfworld_original", task.family, payload)
    )
  return tasks


class OriginalEnv:
  """ALFWorld's text games in TextWorld, answering as `HouseholdEnv` does.

  Args:
    invalid_penalty: Subtracted from the reward of a command that is not
      admissible, at least 0.
    dialect: "move" plays a game with the rules and the wording of the installed
      ALFWorld, "put" with those in its file (older releases).

  Raises:
    RuntimeError: ALFWorld is not installed.
    ValueError: an argument is out of range.
  """

  def __init__(self, *, invalid_penalty: float = 0.0, dialect: str = "move"):
    if not invalid_penalty >= 0.0:
      raise ValueError(
        f"invalid_penalty must be at least 0, got {invalid_penalty}"
      )
    if dialect not in DIALECTS:
      raise ValueError(
        f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}"
      )
    try:
      import alfworld.info
      import textworld
      from alfworld.agents.environment import alfred_tw_env
    except ImportError as error:
      raise RuntimeError(
        "env.name=alfworld_original needs ALFWorld: pip install "
        f"'steppo_jax[alfworld]' ({error})"
      ) from error
    self._info = alfworld.info
    self._wrap = alfred_tw_env.AlfredDemangler
    self._textworld = textworld
    self._penalty, self._dialect = float(invalid_penalty), dialect
    self._engine = self._state = None

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a game in a new engine."""
    del seed
    self.close()
    try:
      path = pathlib.Path(task.payload["game_file"])
      words = task.payload["task"]
      game = json.loads(path.read_text(encoding="utf-8"))
      if self._dialect == "move":
        game |= self._installed(words)
    except (KeyError, TypeError, ValueError, OSError) as error:
      raise ValueError(
        f"task {task.uid}: a payload of alfworld_original needs 'task' and a "
        f"readable 'game_file' ({error!r})"
      ) from error
    wanted = self._textworld.EnvInfos(
      admissible_commands=True, won=True, feedback=True
    )
    with tempfile.TemporaryDirectory() as folder:
      copy = pathlib.Path(folder) / "game.tw-pddl"
      copy.write_text(json.dumps(game), encoding="utf-8")
      self._engine = self._textworld.start(
        str(copy), wanted, wrappers=[self._wrap()]
      )
    self._state = self._engine.reset()
    return self._time_step(self._state["feedback"], 0.0, invalid=False)

  def _installed(self, words):
    """Rules and wording of the installed package, for a task."""
    domain = pathlib.Path(self._info.ALFRED_PDDL_PATH).read_text()
    grammar = pathlib.Path(self._info.ALFRED_TWL2_PATH).read_text()
    return {
      "pddl_domain": domain,
      "grammar": grammar.replace("UNKNOWN GOAL.", words),
    }

  def step(self, text: str) -> types.TimeStep:
    """Answers one command.

    Raises:
      RuntimeError: no task was started.
    """
    if self._state is None:
      raise RuntimeError("call reset(task, seed) before step")
    command = " ".join(text.split())
    if command not in self._state["admissible_commands"]:
      # The engine is asked all the same: its own answer is what is checked.
      self._state, _, _ = self._engine.step(command)
      return self._time_step(
        self._state["feedback"], -self._penalty, invalid=True
      )
    self._state, _, _ = self._engine.step(command)
    won = bool(self._state["won"])
    return self._time_step(self._state["feedback"], float(won), invalid=False)

  def _time_step(self, observation, reward, *, invalid):
    won, text = bool(self._state["won"]), observation.strip()
    info = {
      "won": won,
      "invalid": invalid,
      "anchor": text,
      "commands": sorted(self._state["admissible_commands"]),
    }
    return types.TimeStep(text, reward, won, False, info)

  def close(self) -> None:
    """Ends the engine."""
    if self._engine is not None:
      self._engine.close()
    self._engine = self._state = None
