"""Where a teacher is told the outcome, and what a run asks of its prompts."""

import dataclasses

import mark_tokens as marks
import numpy as np
import pytest
import small_runs

from steppo_jax import types
from steppo_jax.packing import teacher_rows
from steppo_jax.prompts import base, options, sections
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config, players
from steppo_jax.training import run as training_run

HINDSIGHT = config.AlgorithmConfig("stepopsd", teacher="hindsight")
TASK = "\n\nYour task is to: go."
# What is seen at two steps.
SEEN = ("You are in a room.", "You see a desk.")


def chat_prompt(opened):
  _, tokenizer = marks.released(False, opened)
  return sections.make(
    options.PromptConfig(layout="chat", answer="tool_call"), tokenizer,
    "household",
  )  # fmt: skip


def prompts(made, lines=("", "")):
  """Prompts of two steps; a line is the last that is seen at its step."""
  first, second = (seen + line for seen, line in zip(SEEN, lines, strict=True))
  start = made.first(types.Turn(first + TASK))
  turns = [
    types.Turn(SEEN[0] + TASK, response_ids=made.response("look")),
    types.Turn(second),
  ]
  return start, made.extend(made.first(types.Turn(SEEN[0] + TASK)), turns)


def played(made, uid, *, success):
  answer = made.response("look")
  logp, all_ = np.zeros(len(answer), np.float32), np.ones(len(answer), bool)
  steps = tuple(
    types.Step(ids, answer, all_, logp, 0.0, uid, k, "g", 0)
    for k, ids in enumerate(prompts(made))
  )
  return types.Trajectory(uid, None, steps, None, success)


def taught(made, trajectories):
  hints = teacher_rows.make_hints(made.tokenizer, made.generation_ids)
  told = teacher_rows.hindsight(trajectories, hints)
  return [
    teacher_rows.with_suffix(one, ids, hints.generation)
    for one, ids in zip(trajectories, told, strict=True)
  ]


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("success", [False, True])
def test_in_a_chat_the_outcome_is_the_last_that_the_user_says(opened, success):
  made = chat_prompt(opened)
  [found] = taught(made, [played(made, "u", success=success)])
  word = "succeeded" if success else "failed"
  line = f"\nLater it turned out: this episode {word}."
  # As the template renders an observation that ends with the line.
  for step, expected in zip(
    found.steps, prompts(made, (line, line)), strict=True
  ):
    np.testing.assert_array_equal(step.prompt_ids, expected)
    assert step.prompt_ids[-len(made.generation_ids) :].tolist() == (
      made.generation_ids.tolist()
    )


def test_in_a_chat_the_peer_too_stands_before_the_answer_begins():
  made = chat_prompt(opened=True)
  lost, won = (played(made, x, success=x == "won") for x in ("lost", "won"))
  found, _ = taught(made, [lost, won])
  size = len(made.generation_ids)
  for before, after in zip(lost.steps, found.steps, strict=True):
    ids = after.prompt_ids.tolist()
    assert ids[-size:] == made.generation_ids.tolist()
    peer = teacher_rows.episode(won).tolist()
    assert ids[-size - len(peer) : -size] == peer
    kept = len(before.prompt_ids) - size
    assert ids[:kept] == before.prompt_ids[:kept].tolist()


def test_a_prompt_that_ends_otherwise_is_refused():
  made = chat_prompt(opened=False)
  one = played(made, "u", success=True)
  cut = dataclasses.replace(
    one.steps[1], prompt_ids=one.steps[1].prompt_ids[:9]
  )
  one = dataclasses.replace(one, steps=(one.steps[0], cut))
  with pytest.raises(ValueError, match="step 1 of u does not end as the chat"):
    taught(made, [one])


@pytest.mark.parametrize("source", ["agents", "service"])
def test_prompts_of_agents_cannot_be_told_the_outcome(tmp_path, source):
  made = small_runs.small_config(
    tmp_path, algorithm=HINDSIGHT, group_size=2,
    rollout=RolloutConfig(source=source, max_tokens=64),
  )  # fmt: skip
  with pytest.raises(
    ValueError, match=f"rollout.source={source}.*teacher=peer"
  ):
    training_run.Learning(made)


class Bare:
  """A prompt of one's own, which tells no thoughts from actions."""

  def __init__(self, tokenizer):
    inner = base.CompactPrompt(tokenizer)
    self.tokenizer, self.stop_ids = tokenizer, inner.stop_ids
    self.append_only, self.action = True, inner.action
    self.first, self.extend = inner.first, inner.extend


@pytest.mark.parametrize(
  "algorithm",
  [
    config.AlgorithmConfig("actfocus_grpo"),
    dataclasses.replace(HINDSIGHT, span="action"),
    config.AlgorithmConfig("grpo", focus_alpha=0.5),
  ],
  ids=lambda x: x.name + (x.span or ""),
)
def test_a_row_that_needs_thoughts_refuses_a_prompt_that_tells_none(
  tmp_path, monkeypatch, algorithm
):
  made = small_runs.small_config(tmp_path, algorithm=algorithm, group_size=2)
  monkeypatch.setattr(
    players, "make_prompt", lambda _, tokenizer: Bare(tokenizer)
  )
  with pytest.raises(ValueError, match=r"needs reasoning, which .*`reasoning`"):
    training_run.Learning(made)
