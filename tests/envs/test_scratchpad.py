"""Thoughts before commands: how long, how free, and what the game reads."""

import collections
import dataclasses

import numpy as np
import pytest

from steppo_jax.datasets import demonstrations
from steppo_jax.datasets import options as datasets_options
from steppo_jax.envs import base, experts
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import scratchpad
from steppo_jax.envs.household import text as household_text
from steppo_jax.envs.household import worlds as household_worlds
from steppo_jax.prompts import base as prompts_base
from steppo_jax.tokenizer import loading


def played(number, thoughts="long"):
  task = household_worlds.generate(number, split="train", size="tiny")
  return task, experts.get("household").show(
    task, detours=2.0, noise=0.2, random=np.random.default_rng(number),
    thoughts=thoughts,
  )  # fmt: skip


def env(**options):
  made = base.resolve("household", {"size": "tiny"}, options).env.make()
  assert isinstance(made, household.HouseholdEnv)
  return made


@pytest.mark.parametrize(
  ("thoughts", "least", "most"), [("long", 30, 60), ("brief", 10, 30)]
)
def test_an_answer_has_so_many_tokens_of_thought(thoughts, least, most):
  tokenizer = loading.load("scratchpad")
  lengths, seen = [], collections.Counter()
  for number in range(40):
    for action in played(number, thoughts)[1].actions:
      thought, _, _ = action.partition(household_text.THOUGHT_END)
      ids = prompts_base.answer_ids(
        tokenizer, thought + household_text.THOUGHT_END
      )
      lengths.append(len(ids))
      seen.update(ids.tolist())
  assert min(lengths) >= least
  assert max(lengths) <= most
  # Far more than the few pieces that commands are made of.
  assert len(seen) > 120


def test_every_word_of_a_thought_is_one_token():
  tokenizer = loading.load("scratchpad")
  for word in (*scratchpad.words(), "<think>", "</think>"):
    assert len(prompts_base.answer_ids(tokenizer, word)) == 1, word


def test_the_game_reads_what_follows_the_thought():
  for number in range(5):
    task, found = played(number)
    game = env(scratchpad=True)
    out = game.reset(task, 0)
    for k, action in enumerate(found.actions):
      assert out.observation == found.observations[k]
      out = game.step(action)
      assert not out.info["invalid"]
    assert out.terminated
    assert out.info["won"]


def test_the_commands_are_those_of_the_expert_without_thoughts():
  _, found = played(3)
  _, plain = played(3, thoughts=None)
  assert found.observations == plain.observations
  assert [a.rpartition("</think> ")[2] for a in found.actions] == plain.actions
  # The same command, two thoughts.
  again = scratchpad.write(
    plain.observations, plain.actions, np.random.default_rng(99),
    scratchpad.thought,
  )  # fmt: skip
  assert again != found.actions


@pytest.mark.parametrize(
  "answer",
  [
    "look",
    "<think> I look around. look",
    "look <think> I look around. </think>",
    "look <think></think> look",
    "<think></think> fly away",
    "",
  ],
)
def test_an_answer_without_a_whole_thought_is_refused(answer):
  task, _ = played(0)
  game = env(scratchpad=True, invalid_penalty=0.1)
  game.reset(task, 0)
  out = game.step(answer)
  assert out.info["invalid"]
  assert out.reward == pytest.approx(-0.1)
  assert not game.step("<think> Well. </think>look\n").info["invalid"]


def test_without_the_option_a_thought_is_no_command():
  task, found = played(0)
  game = env()
  game.reset(task, 0)
  assert game.step(found.actions[0]).info["invalid"]


def test_a_refused_command_is_noticed():
  random = np.random.default_rng(0)
  text = scratchpad.thought("x.", household_text.NOTHING, "look", random)
  assert any(part in text for part in scratchpad._REFUSED)
  with pytest.raises(ValueError, match="no task"):
    scratchpad.write(["a room", "b"], ["look"], random, scratchpad.thought)


def test_demonstrations_hold_the_thoughts(tmp_path):
  options = datasets_options.Demonstrations(
    split="train", sizes=("tiny",), num_episodes=3, seed=0,
    options=("scratchpad=true",),
  )  # fmt: skip
  plain = dataclasses.replace(options, options=())
  brief = dataclasses.replace(options, brief=True)
  assert len({x.name for x in (options, plain, brief)}) == 3
  with pytest.raises(ValueError, match="need a scratchpad"):
    dataclasses.replace(plain, brief=True)
  demonstrations.prepare(tmp_path, options)
  for episode in demonstrations.load(tmp_path, options):
    *steps, last = episode["steps"]
    assert all(x["action"].startswith("<think>") for x in steps)
    assert last["action"] == ""
