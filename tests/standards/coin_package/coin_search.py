"""The game "coin" of TextWorld-Express, as somebody else may wrap it."""

import random

import textworld_express

from steppo_jax import types
from steppo_jax.envs import base, guides

FOLDS = {"train": "train", "valid_seen": "dev", "valid_unseen": "test"}
GUIDE = guides.Guide(
  part="You look for a coin in a house.",
  answer="Answer with one of the possible commands.",
  tools=guides.env_step("does one command", "take coin"),
  unwrap="env_step",
)
ROW = base.Row(
  "coin_search:CoinSearch", "coin_search:Tasks", guide="coin_search:GUIDE"
)


class Tasks:
  """The games of the package's own folds, by their numbers."""

  def sample(self, count, *, seed, update):
    draw = random.Random(f"{seed} {update}")
    return [self._task("train", draw.randrange(1000)) for _ in range(count)]

  def panel(self, split, count):
    return [self._task(split, n) for n in range(min(count, 1000))]

  def _task(self, split, number):
    payload = {"fold": FOLDS[split], "number": number}
    uid = f"coin_search/{split}/{number}"
    return types.Task(uid, "coin_search", "coin", payload)


class CoinSearch:
  """Pays 1 for the coin; what cannot be done costs `invalid_penalty`."""

  def __init__(self, *, rooms: int = 1, invalid_penalty: float = 0.1):
    self._game = textworld_express.TextWorldExpressEnv(envStepLimit=10**6)
    self._game.load("coin", f"numLocations={rooms}")
    self._penalty = invalid_penalty

  def reset(self, task, seed):
    fold, number = task.payload["fold"], task.payload["number"]
    seeds = getattr(self._game, f"getValidSeeds{fold.title()}")()
    _, facts = self._game.reset(seeds[number % len(seeds)], fold)
    return self._told(facts, 0.0, facts["taskDescription"] + "\n")

  def step(self, text):
    before, known = self._score, text.strip() in self._commands
    _, _, _, facts = self._game.step(text.strip())
    reward = facts["score"] - before - self._penalty * (not known)
    return self._told(facts, reward, invalid=not known)

  def _told(self, facts, reward, before="", invalid=False):
    self._score, self._commands = facts["score"], sorted(facts["validActions"])
    won = bool(facts["tasksuccess"])
    info = {"won": won, "invalid": invalid, "anchor": facts["look"]}
    info["commands"] = self._commands
    text = before + facts["observation"]
    return types.TimeStep(text, reward, won, False, info)

  def close(self):
    self._game.close()
