"""Run folders with episodes of any number, made without a model.

What they hold is written by the same parts that a run writes with.
"""

import dataclasses
import functools
import json
import pathlib

import numpy as np

from steppo_jax import types
from steppo_jax.rollout import journal
from steppo_jax.storage import credit, events, metrics
from steppo_jax.tokenizer import sentencepiece_tokenizer

FAMILIES = ("pick and place", "look in light", "heat", "cool", "clean")
_SEEN = (
  "You are in the middle of a room. You see a cabinet 1, a drawer 2 and a "
  "shelf 3.\nYour task is to put a clean mug in the cabinet.\n",
  "You open the drawer 2. In it, you see a keychain 1, a mug 2.\n",
  "You arrive at shelf 3. On it, you see nothing.\n",
  "Nothing happens.\n",
)
_SAID = (
  "go to drawer 2",
  "open drawer 2",
  "take mug 2 from drawer 2",
  "put mug 2 in cabinet 1",
)


@functools.cache
def tokenizer():
  return sentencepiece_tokenizer.SentencePieceTokenizer()


@functools.cache
def _encoded(text):
  return tokenizer().encode(text)


def step_of(uid, index, prompt, text, *, rng, reward=0.0, version=0, **more):
  """A step that answers a prompt with a text."""
  ends = np.array([tokenizer().end_of_turn_id], np.int32)
  response = np.concatenate([_encoded(text), ends])
  size = len(response)
  return types.Step(
    prompt_ids=prompt,
    response_ids=response,
    response_mask=np.ones(size, bool),
    behaviour_logp=-rng.exponential(0.7, size).astype(np.float32),
    reward=reward,
    trajectory_uid=uid,
    step_index=index,
    group_uid="",
    policy_version=version,
    **more,
  )


def episode(
  uid, task, *, steps, rng, version=0, won=False, seen=_SEEN, said=_SAID
):
  """An episode whose prompts go on where the step before ended."""
  tok = tokenizer()
  marks = np.array([tok.end_of_turn_id], np.int32)
  prompt = np.concatenate([np.array([tok.bos_id]), _encoded(seen[0]), marks])
  prompt, made = prompt.astype(np.int32), []
  for index in range(steps):
    last = index == steps - 1
    invalid = rng.random() < 0.1
    one = step_of(
      uid, index, prompt, said[rng.integers(len(said))], rng=rng,
      reward=float(last and won) - 0.1 * invalid, version=version,
      terminated=bool(last and won), truncated=bool(last and not won),
      stop_reason="length" if rng.random() < 0.05 else "stop",
      metadata={"invalid": bool(invalid)},
    )  # fmt: skip
    made.append(dataclasses.replace(one, group_uid=task.uid))
    after = _encoded(seen[1 + rng.integers(len(seen) - 1)])
    prompt = np.concatenate([prompt, one.response_ids, after, marks])
  return types.Trajectory(
    uid, task, tuple(made), None if won else prompt, won,
    scores={"progress": float(won)},
  )  # fmt: skip


def task_of(number):
  family = FAMILIES[number % len(FAMILIES)]
  return types.Task(
    f"household-small-train-{number}", "household", family, {"seed": number}, 5
  )


def update_of(update, *, groups, samples, steps, num_tasks=40):
  """The episodes of an update; every twentieth breaks."""
  rng = np.random.default_rng(update)
  found = []
  for group in range(groups):
    task = task_of((update * groups + group) % num_tasks)
    for sample in range(samples):
      uid = f"{update}-{group}-{sample}"
      one = episode(
        uid, task, steps=steps, rng=rng, version=update,
        won=bool(rng.random() < 0.2 + 0.006 * update),
      )  # fmt: skip
      if (group * samples + sample) % 20 == 19:
        one = dataclasses.replace(
          one, success=False, error="EnvTimeout: no answer within 30 s",
          final_prompt_ids=None,
        )  # fmt: skip
      found.append(one)
  return found


def write_journal(run, update, episodes, *, ended=True):
  path = journal.path_of(pathlib.Path(run) / "journal", update, 0)
  with journal.Journal(path, {"update": update}) as file:
    for one in episodes:
      file.append(one)
    if ended:
      file.finish({"counters": {}})
  return path


def make(
  folder, *, updates=3, groups=4, samples=2, steps=5, seed=0, options=()
):
  """A run folder with journals, metrics, events and options."""
  run = pathlib.Path(folder)
  run.mkdir(parents=True)
  config = {
    "weights": "start.safetensors", "tokenizer": "household", "seed": seed,
    "num_updates": updates, "group_size": samples,
    "algorithm": {"name": "steppo", "clip_low": 0.2},
    "env": {"name": "household", "size": "small"},
    "packing": {"layout": "tree", "row_length": 4096},
  } | dict(options)  # fmt: skip
  facts = {
    "command": "python -m steppo_jax train experiments/household_steppo.py",
    "date": "2026-11-29T12:00:00+00:00", "commit": "92f3e0c",
    "hardware": "a test, 2 cores",
  }  # fmt: skip
  (run / "config.json").write_text(json.dumps(config))
  (run / "run.json").write_text(json.dumps(facts))
  clock = iter(np.arange(0.0, 1e6, 0.7)).__next__
  with (
    events.Log(run, clock=clock) as log,
    metrics.MetricsWriter(run) as writer,
  ):
    for update in range(updates):
      made = update_of(update, groups=groups, samples=samples, steps=steps)
      with log.span("rollout", update):
        write_journal(run, update, made)
      with log.span("update", update):
        writer.write(update + 1, numbers(update, made, seed))
  return run


def numbers(update, episodes, seed):
  """Metrics of an update."""
  rng = np.random.default_rng([seed, update])
  rate = 1 - np.exp(-0.03 * (update + 1))
  found = {
    "minutes": 0.5 * (update + 1),
    "rollout/episodes": float(len(episodes)),
    "rollout/success": float(np.mean([t.success for t in episodes])),
    "rollout/reward": float(np.mean([t.total_reward for t in episodes])),
    "policy/entropy": float(1.5 - rate + 0.05 * rng.normal()),
    "policy/approx_kl": float(0.01 * rng.exponential()),
    "critic/explained_variance": float(rate + 0.03 * rng.normal()),
  }
  if update % 5 == 4:
    success = float(np.clip(0.35 + 0.4 * rate + 0.02 * rng.normal(), 0, 1))
    found |= {"eval/success": success, "eval/episodes": 500.0}
  return found


def write_credit(run, update, episodes, *, critic=True):
  """Credit of an update's whole episodes, in numbers that can be told apart."""
  whole = [t for t in episodes if t.error is None]
  steps = [s for t in whole for s in t.steps]
  sizes = [len(s.response_ids) for s in steps]
  rng = np.random.default_rng([9, update])
  of_steps = lambda: rng.normal(size=len(steps)).astype(np.float32)
  of_tokens = lambda: rng.normal(size=sum(sizes)).astype(np.float32)
  offsets = lambda counts: np.concatenate([[0], np.cumsum(counts)]).astype(int)
  nothing = np.full(len(steps), np.nan, np.float32)
  made = credit.Credit(
    update=update,
    checkpoint_update=update,
    algorithm="steppo",
    episodes=tuple(t.uid for t in whole),
    first_step=offsets([len(t.steps) for t in whole]),
    first_token=offsets(sizes),
    reward=np.array([s.reward for s in steps], np.float32),
    value=of_steps() if critic else nothing,
    delta=of_steps() if critic else nothing,
    advantage=of_steps(),
    target=of_steps() if critic else nothing,
    ratio=np.exp(0.1 * of_steps()),
    logp=-np.abs(of_tokens()),
    behaviour_logp=np.concatenate([s.behaviour_logp for s in steps]),
    ratio_t=np.exp(0.2 * of_tokens()),
    entropy=np.abs(of_tokens()),
    advantage_t=of_tokens(),
    clipped=(of_tokens() > 1).astype(np.float32),
    teacher_gap=np.full(sum(sizes), np.nan, np.float32),
  )
  path = credit.path_of(run, update)
  credit.write(path, made)
  return made
