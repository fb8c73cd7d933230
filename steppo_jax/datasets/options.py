"""Options of demonstrations: who shows what, in which worlds."""

import dataclasses
import hashlib

from steppo_jax import types
from steppo_jax.envs import base, experts


@dataclasses.dataclass(frozen=True)
class Demonstrations:
  """What is demonstrated.

  Attributes:
    split: of the tasks: "train", "valid_seen" or "valid_unseen".
    sizes: of the worlds, taken in turn.
    num_episodes: number of tasks, one demonstration each.
    seed: tasks of different seeds are different, up to 10 million each.
    detours: of the household alone: mean number of places that the expert
      searches before it uses the planner's knowledge: 0 demonstrates shortest
      plans alone, `math.inf` an expert that finds everything itself.
    noise: chance of a mistake at a step: of a command that is drawn from all
      admissible ones (household), of an answer before enough was read
      (search_qa). Mistaken answers lose the episode.
    env: whose worlds, any that has an expert (`envs.experts.names`).
    options: "name=value" of that environment's own parameters, which change
      what is seen; of the household's, "scratchpad=true" alone, with which a
      thought is written before each command (see `envs.household.scratchpad`).
    brief: of the household with a scratchpad: thoughts of some 20 tokens
      instead of 50.
  """

  split: str
  sizes: tuple[str, ...]
  num_episodes: int
  seed: int
  detours: float = 0.0
  noise: float = 0.0
  env: str = "household"
  options: tuple[str, ...] = ()
  brief: bool = False

  def __post_init__(self):
    found = experts.get(self.env)
    worlds = found.worlds
    if self.split not in worlds.SPLITS:
      raise ValueError(
        f"split must be one of {', '.join(worlds.SPLITS)}, got {self.split!r}"
      )
    if isinstance(self.sizes, str) or not self.sizes:
      raise ValueError(f"sizes must be a tuple of names, got {self.sizes!r}")
    for size in self.sizes:
      if size not in worlds.SIZES:
        raise ValueError(
          f"sizes must be among {', '.join(worlds.SIZES)}, got {size!r}"
        )
    if not 1 <= self.num_episodes <= 10_000_000:
      raise ValueError(
        f"num_episodes must be 1 to 10,000,000, got {self.num_episodes}"
      )
    if self.seed < 0:
      raise ValueError(f"seed must be at least 0, got {self.seed}")
    if not self.detours >= 0:
      raise ValueError(f"detours must be at least 0, got {self.detours}")
    if not 0 <= self.noise < 1:
      raise ValueError(f"noise must be in [0, 1), got {self.noise}")
    if self.detours and found.show is None:
      raise ValueError(
        f"detours belong to the household's expert, not to that of {self.env}"
      )
    if self.noise and found.show is None and found.spoil is None:
      raise ValueError(f"the expert of {self.env} makes no mistakes: noise=0")
    own = base.parse_options(self.options)
    if self.env == "household" and not own.keys() <= {"scratchpad"}:
      raise ValueError(
        f"the household's games are shown as they are: leave {self.options} out"
      )
    if self.brief and not self.thoughts:
      raise ValueError(
        "brief thoughts need a scratchpad: env=household and "
        "options=scratchpad=true"
      )

  @property
  def name(self) -> str:
    """Names the folder: equal options, equal data."""
    name = (
      f"{self.split}-{'_'.join(self.sizes)}-n{self.num_episodes}"
      f"-seed{self.seed}"
    )
    if self.env == "household":
      name = f"{name}-detours{self.detours:g}-noise{self.noise:g}"
      name += "-scratchpad" if self.thoughts else ""
      return name + "-brief" * self.brief
    text = "\n".join(sorted(self.options))
    name += f"-noise{self.noise:g}" if self.noise else ""
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

  @property
  def thoughts(self) -> str | None:
    """What stands before each command of the household: "long" or "brief"."""
    own = base.parse_options(self.options)
    if self.env != "household" or not own.get("scratchpad"):
      return None
    return "brief" if self.brief else "long"

  def task(self, index: int) -> types.Task:
    """The task of an episode."""
    return experts.get(self.env).worlds.generate(
      self.seed * 10_000_000 + index,
      split=self.split,
      size=self.sizes[index % len(self.sizes)],
    )
