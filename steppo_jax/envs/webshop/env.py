"""A shop in text: search, look, choose, buy. WebShop's task, without a server.

Calls are `search[words]` and `click[what is written there]`. The shop is one of
`webshop.worlds`, or the published one read from a folder.
"""

import functools
import hashlib
import pathlib
import threading
from typing import Literal

from steppo_jax import types
from steppo_jax.envs.webshop import catalog as webshop_catalog
from steppo_jax.envs.webshop import data as webshop_data
from steppo_jax.envs.webshop import pages, worlds
from steppo_jax.envs.webshop import score as webshop_score

RULES = ("official", "small")
REWARDS = ("success", "score")
# Splits of the published goals by `load_tasks`.
SPLITS = {
  "index": ("train", "test"),
  "product": ("train", "valid_seen", "valid_unseen"),
}
_UNSEEN_PERCENT = 20
_SEEN_PERCENT = 5
_LOCK = threading.Lock()


def load_catalog(data_dir: str | pathlib.Path) -> webshop_catalog.Catalog:
  """The published shop with its goals, from a folder.

  Args:
    data_dir: See `webshop.data.load_products`.

  Returns:
    A catalog with `goals` in their published order and `score(goal_index,
    asin, options)`.

  Raises:
    ValueError: a file is missing or broken; the message names it.
  """
  products = webshop_data.load_products(data_dir)
  return webshop_catalog.Catalog(products, webshop_catalog.goals_of(products))


@functools.lru_cache(maxsize=4)
def _kept_catalog(data_dir):
  return load_catalog(data_dir)


def _shared_catalog(data_dir: str) -> webshop_catalog.Catalog:
  """One catalog for all environments of a process, however many start."""
  with _LOCK:
    return _kept_catalog(data_dir)


def load_tasks(
  data_dir: str | pathlib.Path,
  split: str,
  *,
  by: Literal["product", "index"] = "product",
) -> list[types.Task]:
  """The published goals of a split as tasks, in their published order.

  Args:
    data_dir: See `load_catalog`.
    split: "train" or "test" by index. By product: "valid_unseen" has all goals
      of a fifth of the products, none of which are in the other two, and
      "valid_seen" a twentieth of the goals of the rest.
    by: "index" is the public split, where nearly every product of a test goal
      is in training too; "product" keeps products apart.

  Returns:
    Tasks with the department as family. `golden_steps` counts one search, one
    product, its options and the purchase, and pages where no search lists the
    product on the first.

  Raises:
    ValueError: the folder is broken, or there is no such split.
  """
  if by not in SPLITS:
    raise ValueError(f"by must be one of {', '.join(SPLITS)}, got {by!r}")
  if split not in SPLITS[by]:
    raise ValueError(
      f"split {split!r} is none of {', '.join(SPLITS[by])} (by {by})"
    )
  folder = str(pathlib.Path(data_dir).expanduser().resolve())
  catalog = _shared_catalog(folder)
  return [
    types.Task(
      uid=f"webshop/real/{goal.goal_index}",
      env="webshop",
      family=goal.category or "other",
      payload={
        "shop": {"data_dir": folder},
        "goal": goal.goal_index,
        "instruction": goal.instruction,
      },
      golden_steps=len(pages.plan(catalog, goal.goal_index)),
    )
    for goal in catalog.goals
    if split == (goal.split if by == "index" else split_by_product(goal))
  ]


def split_by_product(goal: webshop_catalog.Goal) -> str:
  """Where a goal belongs if products are kept apart; see `load_tasks`."""
  if _percent("product", goal.asin) < _UNSEEN_PERCENT:
    return "valid_unseen"
  # By what is said: some products are asked for in the same words.
  seen = _percent("goal", goal.instruction) < _SEEN_PERCENT
  return "valid_seen" if seen else "train"


def _percent(what, text):
  """A number from 0 to 99 that depends on the words alone."""
  data = f"{what}|{text}".encode()
  return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") % 100


class WebShopEnv:
  """A shop as a `types.Env`.

  A purchase ends the episode. A call that is not possible changes nothing, says
  so, and costs `invalid_penalty`. Limits on the number of steps are the
  caller's; the published one is 15.

  `info["scores"]` holds the numbers `small` and `official`, both 0 before a
  purchase.

  Args:
    rule: Which score decides whether a purchase succeeds: "official" or
      "small"; see `webshop.score`.
    reward: "success" pays `success_reward` for a purchase that succeeds fully
      and 0 for another; "score" pays the score of any purchase.
    success_reward: Reward of full success, above 0.
    invalid_penalty: Subtracted from the reward of a call that is not possible,
      at least 0.

  Raises:
    ValueError: an argument is out of range.
  """

  def __init__(
    self,
    *,
    rule: str = "official",
    reward: str = "success",
    success_reward: float = 10.0,
    invalid_penalty: float = 0.1,
  ):
    if rule not in RULES:
      raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if reward not in REWARDS:
      raise ValueError(
        f"reward must be one of {', '.join(REWARDS)}, got {reward!r}"
      )
    if not success_reward > 0.0:
      raise ValueError(f"success_reward must be above 0, got {success_reward}")
    if not invalid_penalty >= 0.0:
      raise ValueError(
        f"invalid_penalty must be at least 0, got {invalid_penalty}"
      )
    self._rule = rule
    self._by_score = reward == "score"
    self._success_reward = float(success_reward)
    self._penalty = float(invalid_penalty)
    self._payload = None
    self.visit: pages.Visit | None = None

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task; the shop has no chance in it, so `seed` is not read.

    Raises:
      ValueError: the task is not one of a shop; the message names it.
    """
    del seed
    self._load(task.uid, task.payload)
    first = (
      f"{self.visit.observation}\n\nYour task is to: "
      f"{self.visit.goal.instruction}"
    )
    return self._time_step(first, 0.0, invalid=False)

  def _load(self, name, payload):
    if self.visit is not None and payload is self._payload:
      self.visit.reset()
      return
    try:
      visit = pages.Visit(_shop(payload["shop"]), payload["goal"])
    except (KeyError, TypeError) as error:
      raise ValueError(
        f"task {name}: a payload of webshop needs 'shop' and 'goal' ({error})"
      ) from error
    except ValueError as error:
      raise ValueError(f"task {name}: {error}") from error
    said = payload.get("instruction", visit.goal.instruction)
    if said != visit.goal.instruction:
      raise ValueError(
        f"task {name}: goal {payload['goal']} of this shop is "
        f"{visit.goal.instruction!r}, not {said!r}; the data have changed"
      )
    self.visit, self._payload = visit, payload

  def step(self, text: str) -> types.TimeStep:
    """Makes one call.

    Raises:
      RuntimeError: no task was started, or the episode is over.
    """
    if self.visit is None:
      raise RuntimeError("call reset(task, seed) before step")
    if self.visit.bought:
      raise RuntimeError("the episode is over: call reset(task, seed)")
    if not self.visit.play(text):
      page = f"{pages.REFUSED}\n{self.visit.observation}"
      return self._time_step(page, -self._penalty, invalid=True)
    score = self.score
    reward = score if self._by_score else self._success_reward * self.won
    return self._time_step(self.visit.observation, reward, invalid=False)

  @property
  def score(self) -> float:
    """Score of what was bought by the rule, 0 before."""
    found = self.visit.score if self.visit else None
    return getattr(found, self._rule) if found else 0.0

  @property
  def won(self) -> bool:
    """Whether something was bought that is all that was wanted."""
    return self.score >= webshop_score.SUCCESS

  def _time_step(self, observation, reward, *, invalid):
    info = {
      "won": self.won,
      "invalid": invalid,
      "anchor": self.visit.anchor(),
      "commands": self.visit.commands,
    }
    found = self.visit.score
    info["scores"] = {
      rule: float(getattr(found, rule)) if found else 0.0 for rule in RULES
    }
    over = self.visit.bought
    return types.TimeStep(observation, float(reward), over, False, info)

  @property
  def admissible_commands(self) -> list[str]:
    """What can be called now; `webshop.pages.SEARCH` stands for any words."""
    return self.visit.commands

  def close(self) -> None:
    """Forgets the task."""
    self.visit = None
    self._payload = None


def _shop(where):
  """The catalog that a payload names."""
  if "data_dir" in where:
    return _shared_catalog(where["data_dir"])
  return worlds.shop(**where)


def plan(task: types.Task) -> list[str]:
  """Calls that solve a task by either rule; see `webshop.pages.plan`.

  Raises:
    ValueError: the task is not one of a shop.
  """
  env = WebShopEnv()
  env.reset(task, 0)
  return pages.plan(env.visit.catalog, task.payload["goal"])
