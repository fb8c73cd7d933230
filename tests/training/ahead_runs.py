"""Rollouts that go on, with an engine and environments that are scripted."""

import contextlib
import dataclasses
import itertools
import random
import time

import worlds

from steppo_jax import types
from steppo_jax.processes import hosts
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import loop
from steppo_jax.training import ahead, config, players

UPDATES = 5


class Engine(worlds.ScriptedEngine):
  """Answers in any order, some calls later, with the weights it was given."""

  def __init__(self, rng, num_slots, speed=0.6):
    super().__init__(lambda *_: "look", num_slots)
    self._speed = speed
    self.counters = types.EngineCounters()
    self.version = None
    self.begun: list[tuple[str, int]] = []
    self._rng = rng

  def set_params(self, params, version):
    self.swap(self.prepare(params), version)

  def prepare(self, params):
    return params

  def swap(self, prepared, version):
    assert not self._asked, "responses are under way"
    assert prepared == version
    self.version = version

  def submit(self, requests):
    super().submit(requests)
    assert len(self._asked) <= self.num_slots
    self.begun += [(r.session, self.version) for r in requests]

  def poll(self):
    ready = [r for r in self._asked if self._rng.random() < self._speed]
    self._asked = [r for r in self._asked if r not in ready]
    return [
      (r, dataclasses.replace(self._respond(r), policy_version=self.version))
      for r in ready
    ]


class Env:
  """Ends after the steps that its task names; some raise, some are slow."""

  def reset(self, task, seed):
    self.left, self.slow = task.payload["steps"], task.payload["slow"]
    self.fails = task.payload["fails"]
    if self.fails == "reset":
      raise OSError("is not there today")
    return types.TimeStep("start", 0.0, False, False, {})

  def step(self, text):
    if self.slow:
      time.sleep(0.003)
    self.left -= 1
    if self.fails == "step" and not self.left:
      raise OSError("went away")
    return types.TimeStep("go on", 1.0, self.left == 0, False, {})

  def close(self):
    pass


class Makers:
  at_once = None

  def __call__(self):
    return Env()

  def close(self):
    pass


def options(folder, **changes):
  made = config.RunConfig(
    weights="none",
    num_updates=UPDATES, tasks_per_update=2, group_size=2,
    run_dir=str(folder), rollout=worlds.ROLLOUT,
  )  # fmt: skip
  rollout = dataclasses.replace(
    made.rollout, max_steps=9, max_tokens=400, **changes
  )
  return dataclasses.replace(made, rollout=rollout)


def episodes_of(rng):
  """Episodes by update, whose lengths are drawn once."""
  payloads = {
    key: {
      "steps": rng.randint(1, 7),
      "fails": rng.choice(["reset", "step"]) if rng.random() < 0.15 else "",
      "slow": rng.random() < 0.2,
    }
    for key in itertools.product(range(UPDATES), range(2), range(2))
  }

  def of(update):
    return [
      loop.Episode(
        f"{update}-{g}-{j}",
        types.Task(f"t{update}-{g}", "test", "", payloads[update, g, j]),
        j,
        (0, update, g, j),
      )
      for g in range(2)
      for j in range(2)
    ]

  return of


def make(
  folder,
  seed,
  *,
  slots=3,
  told=None,
  speed=0.6,
  of=hosts.ALONE,
  note=lambda *_, **__: None,
  **changes,
):
  """An `Ahead` with what it needs, and the engine behind it."""
  chosen = options(folder, **changes)
  engine = Engine(random.Random(seed), slots, speed)
  playing = players.Players(
    engine, prompt_base.CompactPrompt(worlds.tokenizer()), Makers(),
    chosen.rollout, of, contextlib.nullcontext,
  )  # fmt: skip
  tell = (lambda _: None) if told is None else told.append
  episodes = episodes_of(random.Random(seed))
  made = ahead.Ahead(chosen, folder, playing, tell, episodes, note)
  return made, engine, episodes


def learn(made, episodes, *, first=0, last=UPDATES, pause=lambda: None):
  """What the learner does, but the learning: the episodes by update."""
  found = {}
  made.set_policy(first, first)
  for update in range(first, last):
    found[update], _ = made.play(update, episodes(update))
    pause()
    made.set_policy(update + 1, update + 1)
  return found


def learn_on(made, episodes):
  for update in range(1, UPDATES):
    made.play(update, episodes(update))
    made.set_policy(update + 1, update + 1)
