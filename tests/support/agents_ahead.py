"""Agents that play ahead of a learner, with a scripted sampler between them.

Pool, gateway, journals and agents are the real ones, and a session is a process
that may be killed. What is left out is the model: the learner takes no time but
what it is told to, so that many kills cost little.
"""

import contextlib
import hashlib
import multiprocessing
import os
import pathlib
import sys
import time

import numpy as np
import plain_agent
import vocabularies

from steppo_jax import files, types
from steppo_jax.processes import hosts, kill_points
from steppo_jax.rollout import codec, loop
from steppo_jax.rollout import options as rollout_options
from steppo_jax.storage import folder as run_folder
from steppo_jax.tokenizer import loading
from steppo_jax.training import agents, ahead, config

BOUND, UPDATES, TASKS, GROUP = 2, 4, 2, 2
AGENT = pathlib.Path(plain_agent.__file__)


def command(tmp_path):
  return f"{sys.executable} -S {AGENT} {tmp_path / 'acknowledged'}"


def acknowledged(tmp_path):
  """Rewards of the episodes of training whose end an agent saw taken."""
  path = tmp_path / "acknowledged"
  lines = path.read_text().splitlines() if path.exists() else []
  pairs = [line.split() for line in lines]
  return {u: float(x) for u, x in pairs if not u.startswith("evaluation")}


class Engine:
  """Answers at once, and notes which weights answered whom."""

  compiles, num_slots = 0, 4

  def __init__(self, tokenizer):
    self.counters = types.EngineCounters()
    self.version, self.answered, self._asked = None, [], []
    self._ids = np.array([5, tokenizer.end_of_turn_id], np.int32)

  def set_params(self, params, version):
    self.swap(self.prepare(params), version)

  def prepare(self, params):
    return params

  def swap(self, prepared, version):
    assert not self._asked, "answers are under way"
    assert prepared == version
    self.version = version

  def submit(self, requests):
    self._asked += requests

  def poll(self):
    asked, self._asked = self._asked, []
    self.answered += [(request.key, self.version) for request in asked]
    logp = np.full(len(self._ids), -1.0, np.float32)
    answer = types.Response(self._ids, logp, "stop", self.version)
    return [(request, answer) for request in asked]

  def so_far(self):
    return {}

  def cut(self, session):
    pass

  def release(self, session):
    pass


def episodes(update):
  return [
    loop.Episode(
      f"{update}-{g}-{j}",
      types.Task(f"t{update}-{g}", "test", "", {}),
      j,
      (0, update, g, j),
    )
    for g in range(TASKS)
    for j in range(GROUP)
  ]


@contextlib.contextmanager
def playing(tmp_path, told=None, *, plays=None, engine=Engine):
  """An `Ahead` whose episodes agents play, and the engine behind it.

  Args:
    tmp_path: The run's folder.
    told: A list that every trajectory is appended to.
    plays: The command of the agents, in place of `command`.
    engine: Called with the tokenizer.
  """
  name = tmp_path / "tokenizer"
  if not (name / "tokenizer_config.json").exists():
    vocabularies.write_folder(
      name, vocabularies.byte_level(), template=vocabularies.CHATML
    )
  tokenizer = loading.load(name)
  chosen = config.RunConfig(
    weights="none", num_updates=UPDATES, tasks_per_update=TASKS,
    group_size=GROUP, run_dir=str(tmp_path), keep_journals=UPDATES,
    rollout=rollout_options.RolloutConfig(
      source="agents", staleness=BOUND, max_steps=4, max_tokens=512
    ),
    agents=rollout_options.AgentConfig(
      command=plays or command(tmp_path), processes=4, seconds=120.0
    ),
  )  # fmt: skip
  engine = engine(tokenizer)
  with contextlib.closing(
    agents.AgentPlayers(
      chosen, engine, tokenizer, pool=tmp_path / run_folder.POOL_NAME,
      hosts=hosts.ALONE, waiting=contextlib.nullcontext,
    )
  ) as players:  # fmt: skip
    tell = (lambda _: None) if told is None else told.append
    made = ahead.Ahead(chosen, tmp_path, players, tell, episodes)
    with contextlib.closing(made):
      yield made, players, engine


def _session(tmp_path, kill_at, update_s):
  """Learns of all updates that are left, as a run does."""
  kill_points.arm(kill_at)
  saved = tmp_path / "saved"
  first = int(saved.read_text()) if saved.exists() else 0
  with playing(tmp_path) as (made, players, _):
    made.set_policy(first, first)
    for update in range(first, UPDATES):
      found, _ = made.play(update, episodes(update))
      with open(tmp_path / "trained", "a") as file:
        file.writelines(f"{update} {one.uid} {digest(one)}\n" for one in found)
      kill_points.passed("update: learned")
      time.sleep(update_s)
      made.set_policy(update + 1, update + 1)
      kill_points.passed("update: handed over")
      files.replace(saved, str(update + 1))
      kill_points.passed("train: saved")
      # The checkpoint before this one may be needed yet.
      players.settle(update)
    players.settle(UPDATES)
  os._exit(0)


def digest(trajectory):
  """Tells records apart."""
  return hashlib.sha256(codec.to_bytes([trajectory])).hexdigest()


def start(tmp_path, kill_at="", update_s=0.0):
  """A session that has begun; imports are done before, once for all."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["agents_ahead"])
  process = context.Process(target=_session, args=(tmp_path, kill_at, update_s))
  process.start()
  return process


def session(tmp_path, kill_at=""):
  """Runs one session to its end; its status, negative for a signal."""
  process = start(tmp_path, kill_at)
  process.join(600)
  assert process.exitcode is not None
  return process.exitcode


def agents_of(pid):
  """The processes of agents that a session has started."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      parent = path.read_text().rpartition(")")[2].split()[1]
      said = path.with_name("cmdline").read_bytes()
    except OSError:  # It has ended.
      continue
    if int(parent) == pid and AGENT.name.encode() in said:
      found.append(int(path.parent.name))
  return found
