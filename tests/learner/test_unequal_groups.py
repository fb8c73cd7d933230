"""Groups whose rewards are equal, as each row's own comparison sees them."""

import dataclasses
import itertools

import hand_records
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import some

from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import dynamic_sampling
from steppo_jax.packing import rows

STEPS = 40
UNEQUAL = jax.jit(
  dynamic_sampling.unequal_groups, static_argnames=("algorithm", "bootstrap")
)
# Three tenths by one step or by several: equal but for rounding.
REWARDS = st.sampled_from([0.0, 0.1, 0.2, 0.3, -0.1, 1.0])
EPISODES = st.lists(REWARDS, min_size=1, max_size=3)
GROUPS = st.lists(
  st.lists(EPISODES, min_size=1, max_size=3), min_size=1, max_size=4
)
BY_EPISODE = [
  "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp_baseline", "gspo", "serl",
  "stepopsd", "agentopsd", "cispo", "gmpo", "soft", "actfocus_grpo",
]  # fmt: skip
# One of each estimator that is not GRPO's with another name.
FEW = ["grpo", "rloo", "reinforce_pp_baseline", "stepopsd"]
BY_STATE = ["gigpo", "hgpo"]
COMPARE = {
  name
  for name, row in algorithms_table.ALGORITHMS.items()
  if "group" in row.needs and row.critic is None
}


def played(groups, *, lengths=None, end="terminated"):
  """Episodes of (group, episode, step) rewards; all begin in one state."""
  made = []
  for g, group in enumerate(groups):
    for j, rewards in enumerate(group):
      uid = f"{g}-{j}"
      last = len(rewards) - 1
      steps = tuple(
        dataclasses.replace(
          hand_records.step(
            [5], [7] * (lengths[g][j] if lengths else 2), k, uid=uid,
            end=end if k == last else None, reward=reward,
          ),
          group_uid=f"g{g}",
          anchor_obs="" if k else "door",
        )
        for k, reward in enumerate(rewards)
      )  # fmt: skip
      final = [5, 7, 7] if end == "truncated" else None
      made.append(hand_records.trajectory(steps, uid=uid, final=final))
  return made


def judged(name, groups, *, bootstrap="value", change=None, **given):
  row = dataclasses.replace(algorithms_table.get(name), **(change or {}))
  table = rows.step_table(played(groups, **given), num_steps=STEPS)
  found = UNEQUAL(table, algorithm=row, bootstrap=bootstrap)
  assert not np.asarray(found)[len(groups) :].any()
  return np.asarray(found)[: len(groups)].tolist()


def differ(numbers):
  return max(numbers) - min(numbers) > 1e-5


def test_every_row_that_compares_groups_is_judged_here():
  assert {*BY_EPISODE, *BY_STATE, "gagpo", "sapo_rec"} == COMPARE


@settings(max_examples=15)
@given(GROUPS)
@pytest.mark.parametrize("name", some(*FEW, slow=BY_EPISODE))
def test_the_returns_of_episodes_decide(name, groups):
  expected = [differ([sum(episode) for episode in group]) for group in groups]
  assert judged(name, groups) == expected


@settings(max_examples=15)
@given(GROUPS)
@pytest.mark.parametrize("name", BY_STATE)
def test_returns_from_a_shared_state_decide(name, groups):
  """Discounted: what is paid later is worth less from the first state."""
  gamma = algorithms_table.get(name).discount
  expected = []
  for group in groups:
    from_door = [
      sum(gamma**k * reward for k, reward in enumerate(episode))
      for episode in group
    ]
    totals = [sum(episode) for episode in group]
    of_episodes = differ(totals) if name == "gigpo" else False
    expected.append(of_episodes or differ(from_door))
  assert judged(name, groups) == expected


@settings(max_examples=15)
@given(GROUPS)
def test_rewards_at_the_same_place_decide(groups):
  expected = [
    any(
      differ([reward for reward in place if reward is not None])
      for place in itertools.zip_longest(*group)
    )
    for group in groups
  ]
  assert judged("sapo_rec", groups) == expected


def test_gagpo_hears_how_late_a_reward_comes():
  assert judged("gagpo", [[[0.0, 1.0], [1.0]], [[0.0], [0.0, 0.0]]]) == [
    True, False,
  ]  # fmt: skip


def test_the_penalty_on_long_responses_makes_equal_rewards_differ():
  groups, lengths = [[[1.0], [1.0]], [[1.0], [1.0]]], [[10, 4], [4, 3]]
  assert judged("dapo", groups, lengths=lengths) == [False, False]
  penalty = {"overlong_length": 10, "overlong_cache": 5}
  found = judged("dapo", groups, lengths=lengths, change=penalty)
  assert found == [True, False]


def test_what_a_dropped_step_was_paid_is_not_compared():
  groups = [[[0.5, 0.0], [0.5, 1.0]], [[0.5, 0.0], [0.0, 0.0]]]
  found = judged("grpo", groups, end="truncated")
  assert found == [True, True]
  found = judged("grpo", groups, end="truncated", bootstrap="drop_last")
  assert found == [False, True]


def test_a_reward_that_is_not_finite_is_not_hidden():
  table = rows.step_table(played([[[1.0], [1.0]]]), num_steps=STEPS)
  reward = table.reward.copy()
  reward[1] = np.nan
  found = UNEQUAL(
    table.replace(reward=reward),
    algorithm=algorithms_table.get("grpo"),
    bootstrap="value",
  )
  assert bool(found[0])
