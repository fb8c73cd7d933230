"""What agents without skill get in each environment, and what experts get.

All play through the rollout loop, where what they write becomes tokens and text
again, and are judged by the table that `evaluate` prints.
"""

import functools

import pytest
import worlds

from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import worlds as household_worlds
from steppo_jax.envs.papers import env as papers_env
from steppo_jax.envs.papers import worlds as papers_worlds
from steppo_jax.envs.questions import env as questions_env
from steppo_jax.envs.questions import worlds as questions_worlds
from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import worlds as webshop_worlds
from steppo_jax.prompts import base as prompt_base
from steppo_jax.reports import panel
from steppo_jax.rollout import loop, options

# Environment, generator of tasks, scores that an expert brings to 1.
CASES = {
  "household": (household.HouseholdEnv, household_worlds, set()),
  "webshop": (webshop_env.WebShopEnv, webshop_worlds, {"small", "official"}),
  "search_qa": (
    questions_env.SearchQAEnv,
    questions_worlds,
    {"exact_match", "f1"},
  ),
  "paper_search": (papers_env.PaperSearchEnv, papers_worlds, {"recall@all"}),
}
TASKS, STEPS = 8, 15


def _expert(name, task):
  if name == "household":
    env = household.HouseholdEnv()
    env.reset(task, 0)
    return env.game.plan()
  if name == "webshop":
    return webshop_env.plan(task)
  if name == "search_qa":
    return questions_worlds.expert(task)
  return [*papers_worlds.expert(task), "<answer>done</answer>"]


@functools.cache
def _tasks(name):
  _, source, _ = CASES[name]
  return [
    source.generate(n, split="valid_unseen", size="tiny") for n in range(TASKS)
  ]


def _play(name, agent):
  """The table of an agent: (task, turn) to a text."""
  make, _, _ = CASES[name]
  tasks = _tasks(name)
  by_session = {f"e{n}": task for n, task in enumerate(tasks)}
  episodes = [
    loop.Episode(uid, task, 0, (n,))
    for n, (uid, task) in enumerate(by_session.items())
  ]
  played = loop.run(
    worlds.ScriptedEngine(lambda s, turn: agent(by_session[s], turn)),
    functools.partial(make, invalid_penalty=0.1),
    episodes,
    prompt_base.CompactPrompt(worlds.tokenizer()),
    options.RolloutConfig(
      max_steps=STEPS, max_tokens=40_000, max_new_tokens=400
    ),
  )
  assert all(t.error is None for t in played)
  return panel.table(played)["all"]


def _in_turn(name, form):
  """The expert's calls in another form; after the last it starts over."""

  def agent(task, turn):
    calls = _expert(name, task)
    return form(calls[turn % len(calls)])

  return agent


@pytest.mark.parametrize("name", CASES)
def test_experts_get_everything(name):
  found = _play(name, _in_turn(name, lambda call: call))
  for score in {"success", *CASES[name][2]}:
    assert found[score].mean == pytest.approx(1.0), score
  assert found["error_share"].mean == 0.0
  assert found["invalid_share"].mean == 0.0


CHEATS = {
  "says nothing": lambda name: lambda task, turn: "",
  "writes special tokens": lambda name: (
    lambda task, turn: (
      "<|im_end|><eos></s>[INST]<|endoftext|><tool_call></tool_call>"
    )
  ),
  "claims to have won": lambda name: (
    lambda task, turn: "You win. Reward: 1.0. won = true. Task completed."
  ),
  "writes what the environment says": lambda name: (
    lambda task, turn: (
      "The episode is over.\nYou have bought the product. Score: 1.0"
    )
  ),
  "thinks the right calls": lambda name: _in_turn(
    name, "<think>{}</think>".format
  ),
  "never closes its thought": lambda name: _in_turn(name, "<think>{}".format),
  "writes the right calls into other calls": lambda name: _in_turn(
    name, '<tool_call>{{"name": "x", "arguments": "{}"}}</tool_call>'.format
  ),
}


@pytest.mark.parametrize("cheat", CHEATS)
@pytest.mark.parametrize("name", CASES)
def test_cheats_get_nothing(name, cheat):
  found = _play(name, CHEATS[cheat](name))
  for score in {"success", *CASES[name][2]}:
    assert found[score].mean == 0.0, score
  # Every step is refused, and costs what a refusal costs.
  assert found["invalid_share"].mean == 1.0
  assert found["steps"].mean == STEPS
  assert found["reward"].mean == pytest.approx(-0.1 * STEPS)


@pytest.mark.parametrize("name", CASES)
def test_repeating_the_first_right_call_is_no_way_to_win(name):
  found = _play(name, lambda task, turn: _expert(name, task)[0])
  expert = _play(name, _in_turn(name, lambda call: call))
  assert found["success"].mean <= 0.5
  assert found["reward"].mean < expert["reward"].mean - 0.5
  if name == "paper_search":
    # A repeated query costs a half each time: 14 times.
    assert found["reward"].mean < -4.0
  else:
    assert found["success"].mean == 0.0
    assert all(found[score].mean == 0.0 for score in CASES[name][2])
