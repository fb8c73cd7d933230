"""Who is trained on demonstrations reads what who plays is asked."""

import dataclasses

import numpy as np
import pytest
import worlds
from mark_tokens import released
from marks import some

from steppo_jax import types
from steppo_jax.datasets import demonstrations
from steppo_jax.datasets import options as datasets_options
from steppo_jax.envs import experts
from steppo_jax.prompts import options as prompts_options
from steppo_jax.prompts import sections
from steppo_jax.rollout import loop
from steppo_jax.training import imitation

ENVS = ("household", "paper_search", "recommend", "search_qa", "webshop")
LAYOUTS = ("compact", "official", "prefix_friendly", "chat")
LIMITS = dataclasses.replace(
  worlds.ROLLOUT, max_steps=50, max_tokens=100_000, max_new_tokens=500
)


class Reciter:
  """An engine that answers each session with the actions of its expert."""

  num_slots = 4

  def __init__(self, prompt, actions):
    self._prompt, self._actions, self._asked = prompt, actions, []

  def submit(self, requests):
    self._asked += requests

  def poll(self):
    asked, self._asked = self._asked, []
    return [(request, self._answer(request)) for request in asked]

  def _answer(self, request):
    *_, turn = request.key
    ids = self._prompt.response(self._actions[request.session][turn])
    return types.Response(ids, np.zeros(len(ids), np.float32), "stop", 0)

  def release(self, session):
    pass


def test_the_list_is_that_of_all_experts_of_ours():
  # minigrid needs a package; `tests/standards` plays what its bot does.
  assert set(ENVS) == set(experts.names()) - {"minigrid"}


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize(
  ("layout", "answer"),
  some(
    ("chat", "command"), ("official", "command"),
    slow=[
      ("compact", "command"), ("prefix_friendly", "command"),
      ("prefix_friendly", "tool_call"), ("chat", "tool_call"),
    ],
  ),
)  # fmt: skip
def test_prompts_of_demonstrations_are_those_of_play(
  env, layout, answer, tmp_path
):
  _, tokenizer = released(True)
  config = prompts_options.PromptConfig(layout=layout, answer=answer)
  if answer == "tool_call" and env != "household":
    # Their actions are calls of several tools already, or answers.
    config = prompts_options.PromptConfig(layout=layout)
  prompt = sections.make(config, tokenizer, env)
  options = datasets_options.Demonstrations(
    split="train", sizes=("tiny",), num_episodes=4, seed=1, env=env
  )
  demonstrations.prepare(tmp_path, options)
  episodes = demonstrations.load(tmp_path, options)
  tasks = [options.task(index) for index in range(len(episodes))]
  task_of = {task.uid: task for task in tasks}
  shown = {
    episode["uid"]: imitation.demonstration(
      task_of[episode["uid"]], imitation.turns(episode), prompt,
      max_tokens=LIMITS.max_tokens,
    )
    for episode in episodes
  }  # fmt: skip
  actions = {
    episode["uid"]: [step["action"] for step in episode["steps"]]
    for episode in episodes
  }
  played = loop.run(
    Reciter(prompt, actions),
    lambda: demonstrations.make_env(env, {}),
    [loop.Episode(uid, t.task, 0, (0,)) for uid, t in shown.items()],
    prompt,
    LIMITS,
  )
  for trajectory in played:
    assert trajectory.error is None
    assert trajectory.success
    want = shown[trajectory.uid]
    assert len(trajectory.steps) == len(want.steps)
    for ours, theirs in zip(trajectory.steps, want.steps, strict=True):
      np.testing.assert_array_equal(ours.prompt_ids, theirs.prompt_ids)
      np.testing.assert_array_equal(ours.response_ids, theirs.response_ids)
