"""Prompt layouts: the same sections, in two orders, from the same records."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import worlds

from steppo_jax import types
from steppo_jax.envs.household import env as household
from steppo_jax.packing import options as packing_options
from steppo_jax.packing import rows as packing
from steppo_jax.prompts import base as prompt_base
from steppo_jax.prompts import options as prompts_options
from steppo_jax.prompts import sections
from steppo_jax.rollout import loop

Turn = types.Turn
END = worlds.tokenizer().end_of_turn_id
FIRST = (
  "-= Welcome to TextWorld, ALFRED! =-\n\nA room.\n\nYour task is to: win."
)


def builder(layout, history=None, env="household", **more):
  options = prompts_options.PromptConfig(layout=layout, history=history, **more)
  return sections.make(options, worlds.tokenizer(), env)


def answer(text):
  return prompt_base.CompactPrompt(worlds.tokenizer()).response(text)


def conversation(made, steps):
  """Prompts of a conversation in which step k sees "sight k"."""
  turns = [Turn(FIRST, ("go", "stay"))]
  prompts = [made.first(turns[0])]
  for k in range(1, steps):
    turns[-1] = turns[-1]._replace(response_ids=answer(f"go {k}"))
    turns.append(Turn(f"sight {k}", ("look", f"go {k + 1}")))
    prompts.append(made.extend(prompts[-1], turns))
  return [worlds.tokenizer().decode(p) for p in prompts], prompts


def order(text, *parts):
  """The parts in the order in which they appear, each exactly once."""
  assert all(text.count(part) == 1 for part in parts), text
  return sorted(parts, key=text.index)


def test_official_sections_come_in_the_published_order():
  parts = ["Your task: win.", "You see: sight 2", "You saw: A room.", "go 1",
           "You saw: sight 1", "go 2\n", "Possible: look, go 3",
           "Answer with"]  # fmt: skip
  texts, prompts = conversation(builder("official"), 3)
  assert order(texts[2], *reversed(parts)) == parts
  # One turn: what was answered before does not end it.
  assert [int((p == END).sum()) for p in prompts] == [1, 1, 1]
  assert "You saw" not in texts[0]


def test_prefix_friendly_says_what_never_changes_first():
  parts = ["Answer with", "Your task: win.", "You see: A room.",
           "Possible: go, stay", "You see: sight 1", "Possible: look, go 2",
           "You see: sight 2", "Possible: look, go 3"]  # fmt: skip
  texts, prompts = conversation(builder("prefix_friendly"), 3)
  assert order(texts[2], *reversed(parts)) == parts
  for before, after in itertools.pairwise(prompts):
    np.testing.assert_array_equal(after[: len(before)], before)


def test_answers_enter_later_prompts_as_the_ids_that_were_sampled():
  # Ids that no encoder gives for the text they spell.
  odd = np.array([5, 5, 300, 7, END], np.int32)
  for layout in ("official", "prefix_friendly", "compact"):
    made = builder(layout)
    turns = [Turn(FIRST, (), odd), Turn("sight")]
    ids = made.extend(made.first(turns[0]), turns)
    want = odd[:-1] if layout == "official" else odd
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(want))
    assert (windows == want).all(1).sum() == 1


def test_both_orders_hold_the_same_sections():
  one, two = (
    conversation(builder(layout), 4)[0][-1]
    for layout in ("official", "prefix_friendly")
  )
  for k in (1, 2, 3):
    assert f"sight {k}" in one
    assert f"sight {k}" in two


@pytest.mark.parametrize("layout", ["official", "prefix_friendly"])
def test_history_is_cut_to_the_last_steps(layout):
  texts, prompts = conversation(builder(layout, history=1), 4)
  assert "sight 2" in texts[3]
  assert "sight 1" not in texts[3]
  none, _ = conversation(builder(layout, history=0), 4)
  assert "sight 2" not in none[3]
  assert not builder(layout, history=1).append_only
  assert len(prompts[3]) < len(conversation(builder(layout), 4)[1][3])


def test_a_response_cut_off_is_closed_outside_of_what_was_sampled():
  cut = answer("look")[:-1]
  made = builder("prefix_friendly")
  turns = [Turn(FIRST, (), cut), Turn("sight")]
  first = made.first(turns[0])
  ids = made.extend(first, turns)
  np.testing.assert_array_equal(ids[len(first) :][: len(cut)], cut)
  assert ids[len(first) + len(cut)] == END


def test_an_observation_without_a_task_is_shown_as_it_is():
  text = worlds.tokenizer().decode(
    builder("official").first(Turn("A web page"))
  )
  assert "You see: A web page" in text


@pytest.mark.parametrize(
  ("options", "message"),
  [({"history": 3}, "not read by prompt.layout=compact"),
   ({"layout": "official", "history": -1}, "at least 0")],
)  # fmt: skip
def test_options_that_say_nothing_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    prompts_options.PromptConfig(**options)


@functools.cache
def played(layout, history=None):
  """Real games, played by their plans."""
  episodes = [
    e._replace(uid=f"{e.uid}-{j}") for e in worlds.episodes(3) for j in (0, 1)
  ]
  plans = {}
  for episode in episodes:
    env = household.HouseholdEnv()
    env.reset(episode.task, 0)
    plans[episode.uid] = env.game.plan()
  limits = dataclasses.replace(worlds.ROLLOUT, max_steps=5, max_tokens=2048)
  engine = worlds.ScriptedEngine(lambda uid, turn: plans[uid][turn])
  return loop.run(engine, household.HouseholdEnv, episodes,
                  builder(layout, history), limits)  # fmt: skip


def unique_share(layout, packed_as, history=None):
  packed = packing.pack(
    played(layout, history), [0] * 6,
    packing_options.PackingConfig(layout=packed_as, row_length=2048),
    num_parts=1, rows_multiple=1, pad_id=0,
  )  # fmt: skip
  return packed.unique_tokens / packed.row_tokens


def test_the_friendly_order_shares_what_the_official_order_repeats():
  whole = unique_share("prefix_friendly", "packed")
  window = unique_share("prefix_friendly", "tree", history=1)
  official = unique_share("official", "tree")
  # Official prompts share the task across a group, and each step its own
  # prompt with no other.
  assert whole < 0.5
  assert whole < window < official


def test_every_prompt_shows_what_the_game_takes():
  for trajectory in played("official"):
    assert trajectory.success or trajectory.steps[-1].truncated
    for step in trajectory.steps:
      text = worlds.tokenizer().decode(step.prompt_ids)
      action = worlds.tokenizer().decode(step.response_ids).strip()
      listed = text.rpartition("Possible: ")[2].split("\n")[0].split(", ")
      assert action in listed
