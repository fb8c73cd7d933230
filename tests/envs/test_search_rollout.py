"""Both search environments in the rollout loop, with experts for a policy."""

import pytest
import worlds

from steppo_jax.envs.papers import env as papers_env
from steppo_jax.envs.papers import worlds as papers_worlds
from steppo_jax.envs.questions import env as questions_env
from steppo_jax.envs.questions import worlds as questions_worlds
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import loop, options

_CASES = {
  "search_qa": (questions_worlds, questions_env.SearchQAEnv),
  "paper_search": (papers_worlds, papers_env.PaperSearchEnv),
}


def _run(name, answer):
  source, make = _CASES[name]
  tasks = [source.generate(n, split="train", size="tiny") for n in range(6)]
  episodes = [
    loop.Episode(f"e{n}", task, 0, (n,)) for n, task in enumerate(tasks)
  ]
  by_session = {f"e{n}": task for n, task in enumerate(tasks)}
  return loop.run(
    worlds.ScriptedEngine(lambda s, turn: answer(by_session[s], turn)),
    make,
    episodes,
    prompt_base.CompactPrompt(worlds.tokenizer()),
    options.RolloutConfig(max_steps=5, max_tokens=20_000, max_new_tokens=100),
  )


@pytest.mark.parametrize("name", _CASES)
def test_what_an_expert_writes_wins_after_it_became_tokens(name):
  source, _ = _CASES[name]

  def answer(task, turn):
    actions = [*source.expert(task), "<answer>done</answer>"]
    return actions[turn]

  for trajectory in _run(name, answer):
    assert trajectory.error is None
    assert trajectory.success
    assert trajectory.steps[-1].terminated
    # Whoever wins answers right, and finds every paper.
    name_of = {"search_qa": "exact_match", "paper_search": "recall@all"}[name]
    assert trajectory.scores[name_of] == 1.0
    assert len({step.anchor_obs for step in trajectory.steps}) > 1


@pytest.mark.parametrize("name", _CASES)
def test_a_policy_that_never_calls_a_tool_is_cut_off_by_the_loop(name):
  for trajectory in _run(name, lambda task, turn: "hm"):
    assert trajectory.error is None
    assert not trajectory.success
    assert len(trajectory.steps) == 5
    assert trajectory.steps[-1].truncated
    assert all(step.metadata["invalid"] for step in trajectory.steps)
    assert set(trajectory.scores.values()) == {0.0}
