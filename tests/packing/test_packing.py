"""Packing: whole trajectories, each token once, clear refusals."""

import dataclasses

import jax
import numpy as np
import pytest
import worlds
from hand_records import TWO_STEPS, step, trajectory
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.algorithms import objective
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.packing import options as packing_options
from steppo_jax.packing import rows as packing


def pack(trajectories, layout="packed", parts=1, too_long="error", **options):
  config = packing_options.PackingConfig(layout, 12, too_long)
  part = [i % parts for i in range(len(trajectories))]
  return packing.pack(
    trajectories, part, config, num_parts=parts, rows_multiple=1, pad_id=0,
    **options,
  )  # fmt: skip


def test_a_chain_is_stored_once_with_its_steps_and_bootstrap():
  packed = pack([TWO_STEPS])
  rows = packed.tokens
  assert rows.tokens[0, 0].tolist() == [5, 6, 7, 8, 9, 10, 11, 0, 0, 0, 0, 0]
  assert rows.step_ids[0, 0, :7].tolist() == [0, 0, 1, 1, 0, 2, 0]
  assert rows.positions[0, 0, :7].tolist() == [0, 1, 2, 3, 4, 5, 6]
  assert rows.parent[0, 0, :7].tolist() == [0, 0, 1, 2, 3, 4, 5]
  assert rows.subtree_end[0, 0, :7].tolist() == [7] * 7
  assert rows.behaviour_logp[0, 0, :7].tolist() == [0, 0, -1, -2, 0, -1, 0]
  table = packed.table
  assert table.live[:4].tolist() == [False, True, True, False]
  assert table.boundary[1:3].tolist() == [1, 4]
  assert table.bootstrap_at[2] == 6
  assert table.truncated[:3].tolist() == [False, False, True]
  assert table.last[:4].tolist() == [True, False, True, True]
  assert table.reward[2] == 0.5
  # 7 stored tokens; one row a step would hold 4 + 6, and 7 to bootstrap from.
  assert (packed.unique_tokens, packed.row_tokens) == (7, 17)


def test_rows_layout_stores_one_row_a_step_and_one_for_the_bootstrap():
  packed = pack([TWO_STEPS], layout="rows")
  tokens = packed.tokens.tokens[0]
  assert tokens[0, :4].tolist() == [5, 6, 7, 8]
  assert tokens[1, :6].tolist() == [5, 6, 7, 8, 9, 10]
  assert tokens[2, :7].tolist() == [5, 6, 7, 8, 9, 10, 11]
  assert packed.table.boundary[1:3].tolist() == [1, 12 + 4]
  assert packed.table.bootstrap_at[2] == 24 + 6


def test_a_rewritten_prompt_starts_a_chain_of_its_own():
  rewritten = trajectory(
    [step([5, 6], [7]), step([5, 9], [8], 1, end="terminated")]
  )
  packed = pack([rewritten])
  row = packed.tokens.tokens[0, 0]
  # Both chains fit one row, and neither sees the other.
  assert row[:6].tolist() == [5, 6, 7, 5, 9, 8]
  assert packed.tokens.subtree_end[0, 0, :6].tolist() == [3, 3, 3, 6, 6, 6]
  assert packed.tokens.positions[0, 0, :6].tolist() == [0, 1, 2, 0, 1, 2]


def test_an_empty_response_keeps_its_boundary():
  empty = trajectory(
    [step([5, 6], []), step([5, 6, 9], [7], 1, end="terminated")]
  )
  packed = pack([empty])
  assert packed.table.boundary[1:3].tolist() == [1, 2]
  assert 1 not in packed.tokens.step_ids


def test_the_table_counts_the_sampled_tokens_of_each_step():
  masked = dataclasses.replace(
    step([5, 6], [7, 8, 9], end="terminated"),
    response_mask=np.array([True, False, True]),
  )
  packed = pack([trajectory([masked])])
  assert packed.table.num_tokens[:3].tolist() == [0, 2, 0]
  for layout in ("rows", "packed", "tree"):
    packed = pack([TWO_STEPS], layout=layout)
    count = np.bincount(packed.tokens.step_ids.ravel(), minlength=64)
    assert packed.table.num_tokens[1:].tolist() == count[1:64].tolist()


def test_a_group_shares_its_task_in_a_tree_and_not_in_chains():
  twin = trajectory([step([5, 6], [9], uid="b", end="terminated")], uid="b")
  assert pack([TWO_STEPS, twin]).unique_tokens == 7 + 3
  packed = pack([TWO_STEPS, twin], layout="tree")
  assert packed.unique_tokens == 7 + 1
  assert packed.table.boundary[1] == packed.table.boundary[3]
  # Parts hold whole trajectories: nothing is shared between them.
  assert pack([TWO_STEPS, twin], layout="tree", parts=2).unique_tokens == 10


LONG = trajectory(
  [
    step([1, 2], [3], uid="c", reward=0.25),
    step([1, 2, 3, 4], [5], 1, uid="c", reward=0.5),
    step([1] * 10, [2] * 5, 2, uid="c", end="terminated", reward=1.0),
  ],
  uid="c",
)


def test_a_step_that_is_too_long_is_an_error_that_names_the_ways_out():
  with pytest.raises(ValueError, match=r"15 tokens.*raise packing.row_length"):
    pack([LONG])
  with pytest.raises(ValueError, match=r"packing\.too_long=truncate"):
    pack([LONG], layout="tree")


@pytest.mark.parametrize("layout", ["rows", "packed", "tree"])
def test_a_trajectory_can_be_cut_before_a_step_that_is_too_long(layout):
  packed = pack([LONG, TWO_STEPS], layout=layout, too_long="truncate")
  table = packed.table
  assert packed.cut == 1
  assert table.live[:6].tolist() == [False, True, True, True, True, False]
  assert table.truncated[:6].tolist() == [
    False,
    False,
    True,
    False,
    True,
    False,
  ]
  assert table.reward[1:3].tolist() == [0.25, 0.5]
  # The prompt of the step that is left out is what follows.
  tokens = packed.tokens.tokens.ravel()
  assert tokens[table.bootstrap_at[2]] == 1
  assert pack([TWO_STEPS], too_long="truncate").cut == 0


def test_a_cut_moves_to_the_front_while_the_next_prompt_is_too_long():
  far = dataclasses.replace(LONG.steps[2], prompt_ids=np.ones(13, np.int32))
  long = trajectory([*LONG.steps[:2], far], uid="c")
  packed = pack([long], too_long="truncate")
  assert packed.table.live.sum() == 1
  assert packed.table.truncated[1]
  short = trajectory([dataclasses.replace(far, step_index=0)], uid="c")
  kept = pack([short, TWO_STEPS], too_long="truncate")
  assert (kept.cut, kept.table.live.sum()) == (1, 2)
  with pytest.raises(ValueError, match="no first step of 1 trajectories"):
    pack([short], too_long="truncate")


def test_trajectories_stay_whole_within_their_part():
  real = worlds.trajectories()
  config = packing_options.PackingConfig(row_length=worlds.CONTEXT)
  packed = packing.pack(
    real, [i % 3 for i in range(len(real))], config,
    num_parts=3, rows_multiple=2, pad_id=0,
  )  # fmt: skip
  steps = np.cumsum([0] + [len(t.steps) for t in real])
  for i in range(len(real)):
    ids = np.arange(steps[i] + 1, steps[i + 1] + 1)
    where = np.isin(packed.tokens.step_ids, ids)
    assert set(np.nonzero(where)[0]) == {i % 3}
  assert packed.tokens.tokens.shape[1] % 2 == 0


def test_every_sampled_token_is_stored_exactly_once_with_its_logp():
  real = worlds.trajectories()
  config = packing_options.PackingConfig(row_length=worlds.CONTEXT)
  packed = packing.pack(
    real, [0] * len(real), config, num_parts=1, rows_multiple=1, pad_id=0
  )
  steps = [s for t in real for s in t.steps]
  for number, s in enumerate(steps, 1):
    at = packed.tokens.step_ids == number
    assert packed.tokens.tokens[at].tolist() == s.response_ids.tolist()
    np.testing.assert_array_equal(
      packed.tokens.behaviour_logp[at], s.behaviour_logp
    )


@pytest.mark.parametrize(
  ("trajectories", "message"),
  [
    ([trajectory([])], "no steps"),
    ([trajectory([step([], [1], end="terminated")])], "empty prompt"),
    ([TWO_STEPS, TWO_STEPS], "twice"),
    ([trajectory([step([1], [2], 1, end="terminated")])], r"\[0\] are missing"),
    ([trajectory([step([1], [2])])], "exactly the last step"),
    ([trajectory([step([1], [2], end="truncated")])], "final_prompt_ids"),
    ([trajectory([step([1] * 12, [2], end="terminated")])], "row_length"),
    ([dataclasses.replace(TWO_STEPS, error="x")], "do not train"),
  ],
)
def test_records_that_cannot_be_trained_on_are_refused(trajectories, message):
  with pytest.raises(ValueError, match=message):
    pack(trajectories)


@pytest.mark.parametrize(
  ("numbers", "message"),
  [
    ((0, 1, 1), r"a are numbered \[0, 1, 1\]: \[1\] appear more than once"),
    ((0, 0, 1), r"\[0\] appear more than once"),
    ((0, 2, 3), r"a are numbered \[0, 2, 3\]: \[1\] are missing"),
    ((1, 2, 3), r"\[0\] are missing; they must run from 0 without a gap"),
    ((0, 2, 1), r"a are numbered \[0, 2, 1\]: they are out of order"),
  ],
)
def test_steps_are_numbered_from_0_in_order_each_once(numbers, message):
  steps = [step([1], [2], k) for k in numbers[:-1]]
  steps.append(step([1], [2], numbers[-1], end="terminated"))
  with pytest.raises(ValueError, match=message):
    pack([trajectory(steps)])


def test_a_step_of_another_trajectory_is_refused():
  strange = step([1], [2], 1, uid="b", end="terminated")
  with pytest.raises(ValueError, match="step 1 of trajectory b lies in traj"):
    pack([trajectory([step([1], [2]), strange])])


@pytest.mark.parametrize(
  ("reward", "message"),
  [
    (1, "step 0 of trajectory a: reward 1 is of type int: rewards are floats"),
    (np.int32(1), "of type int32"),
    (True, "of type bool"),
    (float("nan"), "reward nan is not finite"),
    (np.float32("inf"), "reward inf is not finite"),
    (-1e39, r"reward -1e\+39 is not finite in float32"),
  ],
)
def test_a_reward_is_a_finite_float(reward, message):
  with pytest.raises(ValueError, match=message):
    pack([trajectory([step([1], [2], end="terminated", reward=reward)])])
  pack([trajectory([step([1], [2], end="terminated", reward=np.float32(1))])])


@given(st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 1))
def test_a_log_prob_is_finite_where_a_token_was_sampled(poison, at):
  made = step([1], [2, 3], end="terminated")
  logp = np.array([-1, -1], np.float32)
  logp[at] = poison
  spoilt = dataclasses.replace(made, behaviour_logp=logp)
  with pytest.raises(
    ValueError, match=f"step 0 of trajectory a: behaviour_logp of token {at} is"
  ):
    pack([trajectory([spoilt])])
  given = dataclasses.replace(spoilt, response_mask=np.arange(2) != at)
  assert pack([trajectory([given])]).table.num_tokens[1] == 1


@pytest.mark.parametrize(
  ("prompt", "response", "final", "message"),
  [
    ([1, 9], [2], None, "step 0 of trajectory a: prompt_ids holds the token id "
     "9, the model knows 9"),
    ([1], [-1], None, "step 0 of trajectory a: response_ids .* id -1"),
    ([1], [2], [1, 2, 12], "trajectory a: final_prompt_ids .* id 12"),
  ],
)  # fmt: skip
def test_a_token_id_is_one_of_the_model(prompt, response, final, message):
  end = "terminated" if final is None else "truncated"
  made = trajectory([step(prompt, response, end=end)], final=final)
  with pytest.raises(ValueError, match=message):
    pack([made], vocab_size=9)
  if response[0] > 0:
    pack([made], vocab_size=13)


def test_ragged_response_records_are_refused():
  bad = dataclasses.replace(
    step([1], [2, 3], end="terminated"), behaviour_logp=np.zeros(1)
  )
  with pytest.raises(ValueError, match="lengths"):
    pack([trajectory([bad])])


def test_shapes_too_small_for_the_batch_are_refused():
  with pytest.raises(ValueError, match="num_steps=2"):
    pack([TWO_STEPS], num_steps=2)
  with pytest.raises(ValueError, match="rows_per_part=1"):
    pack([TWO_STEPS], layout="rows", rows_per_part=1)


def test_buckets_grow_by_at_most_a_half():
  sizes = [packing.bucket(n, smallest=8) for n in range(1, 200)]
  assert sorted(set(sizes)) == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
  assert all(s >= n for n, s in enumerate(sizes, 1))


@pytest.mark.parametrize(
  ("name", "expected"),
  [("gigpo", [0.707106] * 3 + [-0.707106]), ("hgpo", [0] * 4),
   ("gagpo", [0] * 4)],
)  # fmt: skip
def test_steps_without_an_anchor_share_no_state(name, expected):
  # What a service gives that knows of no anchors. An empty text is no state:
  # nothing is compared by states, and of gigpo the episodes' z-score is left.
  long = trajectory(
    [step([5, 6], [7]), step([5, 6, 7, 8], [9], 1),
     step([5, 6, 7, 8, 9, 4], [3], 2, end="terminated", reward=1.0)],
  )  # fmt: skip
  short = trajectory([step([5, 6], [7], uid="b", end="terminated")], uid="b")
  packed = pack([long, short])
  assert len(set(packed.table.anchor[1:5])) == 4
  row = algorithms_table.get(name)
  rows = jax.tree.map(lambda x: x[0], packed.tokens)
  found = objective.advantages(row, rows, packed.table, None, None)
  np.testing.assert_allclose(found.advantage[1:5], expected, atol=1e-5)


def test_steps_with_one_anchor_share_their_state():
  made = [
    dataclasses.replace(
      step([5, 6], [7], uid=uid, end="terminated"), anchor_obs=anchor
    )
    for uid, anchor in (("a", "door"), ("b", "door"), ("c", ""), ("d", ""))
  ]
  packed = pack([trajectory([x], uid=x.trajectory_uid) for x in made])
  anchor = packed.table.anchor[1:5]
  assert anchor[0] == anchor[1]
  assert len(set(anchor)) == 3
