"""Which peer a teacher has seen, and the rows in which it reads on."""

import dataclasses

import hand_records
import jax
import numpy as np
import pytest
import worlds
from peer_episodes import contexts, episodes, packed, steps_of
from ragged_episodes import LAYOUTS

from steppo_jax.packing import options, teacher_rows
from steppo_jax.packing import rows as packing


def trajectory(uid, length, *, group="g", success=True):
  """An episode of one step and `length` tokens; the answer spells the uid."""
  answer = [ord(uid)] * (length - 1)
  step = hand_records.step([5], answer, uid=uid, end="terminated")
  step = dataclasses.replace(step, group_uid=group)
  return dataclasses.replace(
    hand_records.trajectory([step], uid=uid), success=success
  )


def test_the_peer_is_the_shortest_other_success_whatever_the_order():
  played = [
    trajectory("d", 3, success=False),
    trajectory("c", 4),
    trajectory("b", 4),
    trajectory("a", 5),
    trajectory("z", 2, group="alone"),
    trajectory("y", 2, group="lost", success=False),
    trajectory("x", 2, group="lost", success=False),
  ]
  # b and c are equally short: b comes first, and has itself seen c.
  expected = {"a": "b", "b": "c", "c": "b", "d": "b", "x": "", "y": "", "z": ""}
  rng = np.random.default_rng(0)
  for _ in range(10):
    found = {
      t.uid: "" if seen is None else chr(seen[-1])
      for t, seen in zip(played, teacher_rows.choose(played), strict=True)
    }
    assert found == expected
    played = [played[i] for i in rng.permutation(len(played))]


def test_an_episode_is_one_context_of_its_own_tokens():
  # The second prompt extends the first: each token once.
  assert teacher_rows.episode(hand_records.TWO_STEPS).tolist() == [
    5,
    6,
    7,
    8,
    9,
    10,
  ]
  # The third prompt is written anew and begins behind what came before.
  rewritten = hand_records.trajectory(
    [
      *hand_records.TWO_STEPS.steps[:1],
      hand_records.step([5, 6, 7, 8, 9], [10], 1),
      hand_records.step([5, 9], [11], 2, end="terminated"),
    ]
  )
  assert teacher_rows.episode(rewritten).tolist() == [
    5,
    6,
    7,
    8,
    9,
    10,
    5,
    9,
    11,
  ]


def test_rows_of_a_teacher_by_hand():
  # The student reads 5 6, writes 7 8, reads 9, writes 10; the peer 5 and p p.
  student = dataclasses.replace(hand_records.TWO_STEPS, success=False)
  played = [trajectory("p", 3), student]
  config = options.PackingConfig("packed", 12)
  made = packing.pack(
    played, [0, 0], config, num_parts=1, rows_multiple=1, pad_id=0
  )
  rows, left_out = teacher_rows.pack(
    played, made, config, rows_multiple=1, pad_id=0
  )
  assert (left_out, rows.rows_used.tolist()) == (0, [1])
  assert rows.tokens.tokens.shape == (1, 1, 24)
  line, p = rows.tokens.tokens[0, 0, :10].tolist(), ord("p")
  # Without the prompt to bootstrap from.
  assert line == [5, p, p, 5, 6, 7, 8, 9, 10, 0]
  # Steps 2 and 3 of the batch; step 1 is the peer's, who has no peer.
  assert rows.tokens.step_ids[0, 0, :9].tolist() == [0, 0, 0, 0, 0, 2, 2, 0, 3]
  assert rows.tokens.positions[0, 0, :9].tolist() == list(range(9))
  assert rows.covered[:4].tolist() == [False, False, True, True]
  # Longest first: the student lies before the peer in the batch's own row.
  assert made.tokens.step_ids[0, 0, :10].tolist() == [
    0, 0, 2, 2, 0, 3, 0, 0, 1, 1,
  ]  # fmt: skip
  assert rows.shift[:4].tolist() == [0, 0, 3, 3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_token_of_a_teacher_is_its_students_behind_the_peer(layout):
  made, rows, left_out = packed(layout)
  assert left_out == 0
  known = contexts()
  student, teacher = (x.tokens for x in (made, rows))
  flat = lambda x: x.reshape(-1)
  length = teacher.tokens.shape[-1]
  seen = 0
  for number, (step, whose) in steps_of(made).items():
    context = known[whose.uid]
    assert rows.covered[number] == (context is not None)
    here = np.flatnonzero(flat(student.step_ids) == number)
    if context is None:
      assert not (teacher.step_ids == number).any()
      continue
    there = here + rows.shift[number]
    np.testing.assert_array_equal(flat(teacher.step_ids)[there], number)
    for count, at in enumerate(there, 1):
      path = [at]
      while flat(teacher.parent)[path[-1]] != path[-1] % length:
        first = path[-1] - path[-1] % length
        path.append(first + flat(teacher.parent)[path[-1]])
      read = flat(teacher.tokens)[path[::-1]]
      expected = [*context, *step.prompt_ids, *step.response_ids[:count]]
      np.testing.assert_array_equal(read, expected)
      seen += 1
  assert seen > 100
  # Nothing else is scored.
  assert (teacher.step_ids > 0).sum() == seen


@pytest.mark.slow
def test_a_context_is_stored_once_a_trajectory_and_in_a_tree_once_a_group():
  played = [
    dataclasses.replace(t, success=i % 3 == 0)
    for i, t in enumerate(worlds.trajectories(4, samples=3))
  ]
  seen = [x for x in teacher_rows.choose(played) if x is not None]
  assert len(seen) == 8  # the other two of four groups
  stored = {}
  for layout in LAYOUTS:
    config = options.PackingConfig(layout, worlds.CONTEXT)
    made = packing.pack(
      played, [0] * 12, config, num_parts=1, rows_multiple=8, pad_id=0
    )
    rows, _ = teacher_rows.pack(played, made, config, rows_multiple=8, pad_id=0)
    used = rows.tokens.subtree_end > np.arange(2 * worlds.CONTEXT)
    stored[layout] = int(used.sum())
  whole = lambda t: len(t.steps[-1].prompt_ids) + len(t.steps[-1].response_ids)
  told = [t for i, t in enumerate(played) if i % 3]
  assert stored["packed"] == sum(map(len, seen)) + sum(map(whole, told))
  assert stored["rows"] > 3 * stored["packed"]
  # The second of a group saves the context and the first prompt.
  again = sum(
    len(context) + len(t.steps[0].prompt_ids)
    for context, t in zip(seen[1::2], told[1::2], strict=True)
  )
  assert stored["tree"] <= stored["packed"] - again


def test_the_order_of_episodes_gives_the_same_rows():
  _, rows, _ = packed("packed")
  _, again, _ = packed("packed", order=tuple(reversed(range(len(episodes())))))
  jax.tree.map(np.testing.assert_array_equal, rows, again)


def test_a_peer_that_does_not_fit_is_left_out_and_counted():
  longest = lambda t: max(
    len(s.prompt_ids) + len(s.response_ids) for s in t.steps
  )
  needs = [
    None if context is None else len(context) + longest(t)
    for t, context in zip(episodes(), contexts().values(), strict=True)
  ]
  length = sorted(n for n in needs if n)[3]
  made, rows, left_out = packed("packed", length=length)
  fits = [n is not None and n <= length for n in needs]
  assert 4 <= sum(fits) < 8
  assert left_out == sum(n is not None for n in needs) - sum(fits)
  covered = np.repeat(fits, [len(t.steps) for t in made.trajectories])
  np.testing.assert_array_equal(rows.covered[1 : 1 + len(covered)], covered)


def test_a_trajectory_that_was_cut_is_taught_by_a_whole_peer():
  # The second step, 13 tokens, does not fit; as a peer it is read all the same.
  long = [*[5, 6, 7] * 3, 5, 6]
  steps = [
    hand_records.step([5, 6], [7]),
    hand_records.step(long, [8, 9], 1, end="terminated"),
  ]
  played = [
    dataclasses.replace(hand_records.trajectory(steps), success=True),
    trajectory("p", 4),
  ]
  config = options.PackingConfig("packed", 12, "truncate", teacher_length=20)
  made = packing.pack(
    played, [0, 0], config, num_parts=1, rows_multiple=1, pad_id=0
  )
  assert made.cut == 1
  rows, left_out = teacher_rows.pack(
    played, made, config, rows_multiple=1, pad_id=0
  )
  assert left_out == 0
  (first, second), p = rows.tokens.tokens[0, :2].tolist(), ord("p")
  assert first[:17] == [*long, 8, 9, 5, p, p, p]
  assert second[:7] == [5, p, p, p, 5, 6, 7]
  assert rows.covered[:4].tolist() == [False, True, True, False]


HINTS = teacher_rows.Hints(*(np.array([x], np.int32) for x in (1, 2, 3, 4)))


def test_hindsight_tells_the_outcome_and_a_failure_its_first_correct_peer():
  played = [
    trajectory("d", 3, success=False),
    trajectory("c", 4),
    trajectory("b", 5),
    trajectory("y", 2, group="lost", success=False),
    trajectory("z", 2, group="alone"),
  ]
  peer = teacher_rows.episode(played[2]).tolist()
  expected = {
    "d": [2, 3, *peer, 4], "c": [1, 4], "b": [1, 4], "y": [2, 4], "z": [1, 4]
  }  # fmt: skip
  rng = np.random.default_rng(0)
  for _ in range(5):
    found = {
      t.uid: told.tolist()
      for t, told in zip(
        played, teacher_rows.hindsight(played, HINTS), strict=True
      )
    }
    assert found == expected
    played = [played[i] for i in rng.permutation(len(played))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hindsight_stands_between_prompt_and_response(layout):
  played = episodes()
  config = options.PackingConfig(layout, worlds.CONTEXT)
  made = packing.pack(
    played, [0] * len(played), config, num_parts=1, rows_multiple=8, pad_id=0
  )
  rows, left_out = teacher_rows.pack(
    played, made, config, rows_multiple=8, pad_id=0, hints=HINTS
  )
  assert left_out == 0
  told = dict(
    zip(
      (t.uid for t in played), teacher_rows.hindsight(played, HINTS),
      strict=True,
    )
  )  # fmt: skip
  ids, parent = rows.tokens.tokens[0], rows.tokens.parent[0]
  for number, (step, whose) in steps_of(made).items():
    assert rows.covered[number]
    where = np.argwhere(rows.tokens.step_ids[0] == number)
    if not len(where):
      continue
    # Back from the first token of the response to the root of its tree.
    row, at = where[0]
    path = []
    while parent[row, at] != at:
      at = parent[row, at]
      path.append(int(ids[row, at]))
    assert path[::-1] == [*step.prompt_ids, *told[whose.uid]]
