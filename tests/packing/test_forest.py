"""Trees of token sequences: every path exact, every sampled token once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_forests import conversations

from steppo_jax.packing import forest

LAYOUTS = {
  "alone": forest.alone,
  "chains": lambda paths: [
    tree
    for number in sorted({p.trajectory for p in paths})
    for tree in forest.chains([p for p in paths if p.trajectory == number])
  ],
  "tries": lambda paths: forest.tries(paths, 64),
}


def line(tree, slot):
  """Slots from the root to `slot`, by parents."""
  found = [slot]
  while tree.parent[found[-1]] != found[-1]:
    found.append(int(tree.parent[found[-1]]))
  return found[::-1]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=150, deadline=None)
@given(paths=conversations())
def test_every_step_is_stored_once_behind_its_own_prompt(layout, paths):
  trees = LAYOUTS[layout](paths)
  steps = {p.step: p for p in paths if p.step}
  seen, owner = [], {}
  for t, tree in enumerate(trees):
    boundary = dict(tree.boundaries)
    for step, start in tree.responses:
      path = steps[step]
      seen.append(step)
      prompt = line(tree, boundary[step])
      count = len(path.ids) - path.prompt
      slots = [*prompt, *range(start, start + count)]
      np.testing.assert_array_equal(tree.tokens[slots], path.ids)
      np.testing.assert_array_equal(
        tree.positions[slots], np.arange(len(path.ids))
      )
      if count:
        assert line(tree, start + count - 1) == slots
      for slot in slots[path.prompt :]:
        assert owner.setdefault((t, slot), step) == step
  assert sorted(seen) == sorted(steps)
  # A sampled token is behind prompts of its own trajectory only.
  for t, tree in enumerate(trees):
    boundary = dict(tree.boundaries)
    for step in boundary:
      for slot in line(tree, boundary[step]):
        other = owner.get((t, slot))
        if other is not None:
          assert steps[other].trajectory == steps[step].trajectory


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=150, deadline=None)
@given(paths=conversations())
def test_a_token_sees_exactly_its_ancestors(layout, paths):
  for tree in LAYOUTS[layout](paths):
    n = len(tree.tokens)
    j = np.arange(n)
    for i in range(n):
      sees = (j <= i) & (i < tree.subtree_end)
      assert np.flatnonzero(sees).tolist() == line(tree, i)


@settings(max_examples=150, deadline=None)
@given(paths=conversations())
def test_a_prompt_after_the_end_is_stored_too(paths):
  for layout in LAYOUTS.values():
    found = {
      step: tree.tokens[line(tree, slot)].tolist()
      for tree in layout(paths)
      for step, slot in tree.finals
    }
    wanted = {p.final_of: p.ids.tolist() for p in paths if p.final_of}
    assert found == wanted


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(paths=conversations())
def test_a_trie_is_never_larger_than_chains_and_those_than_rows(paths):
  size = lambda trees: sum(len(t.tokens) for t in trees)
  rows, chains, tries = (
    size(LAYOUTS[name](paths)) for name in ("alone", "chains", "tries")
  )
  assert tries <= chains <= rows == sum(len(p.ids) for p in paths)
  # No trie can be smaller than the distinct prefixes.
  assert tries >= len({tuple(p.ids[:n]) for p in paths
                       for n in range(1, len(p.ids) + 1)})  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(paths=conversations(), capacity=st.integers(0, 20))
def test_a_trie_that_is_too_large_is_cut_into_ones_that_fit(paths, capacity):
  capacity += max(len(p.ids) for p in paths)
  trees = forest.tries(paths, capacity)
  assert max(len(t.tokens) for t in trees) <= capacity
  assert sorted(s for t in trees for s, _ in t.responses) == sorted(
    p.step for p in paths if p.step
  )
  # Trajectories that fit alone are never cut, so sharing never costs.
  size = lambda trees: sum(len(t.tokens) for t in trees)
  alone = [
    forest.tries([p for p in paths if p.trajectory == number], 64)
    for number in {p.trajectory for p in paths}
  ]
  if max(map(size, alone)) <= capacity:
    assert size(trees) <= sum(map(size, alone))


def test_branches_of_one_prompt_and_equal_answers_by_hand():
  make = lambda ids, prompt, step, trajectory: forest.Path(
    np.array(ids, np.int32), prompt, step, 0, trajectory
  )
  paths = [
    make([5, 6, 7, 8], 2, 1, 0),  # answers 7 8
    make([5, 6, 7, 8, 9, 4], 5, 2, 0),  # goes on
    make([5, 6, 7, 8], 2, 3, 1),  # the same answer in another trajectory
    make([5, 6, 3], 2, 4, 2),  # another answer
  ]
  (tree,) = forest.tries(paths, 64)
  assert tree.tokens.tolist() == [5, 6, 7, 8, 9, 4, 7, 8, 3]
  assert tree.parent.tolist() == [0, 0, 1, 2, 3, 4, 1, 6, 1]
  assert tree.subtree_end.tolist() == [9, 9, 6, 6, 6, 6, 8, 8, 9]
  assert tree.positions.tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 2]
  assert sorted(tree.responses) == [(1, 2), (2, 5), (3, 6), (4, 8)]
  assert dict(tree.boundaries) == {1: 1, 2: 4, 3: 1, 4: 1}


def rows_of(*parents, length=8):
  """Rows of tokens given by their parents, as `check_rows` takes them."""
  made = []
  for own in parents:
    parent, end = np.arange(length), np.arange(length)
    depth, steps = np.zeros(length, int), np.zeros(length, int)
    parent[: len(own)] = own
    for i in range(len(own)):
      j = i
      end[i] = max(end[i], i + 1)
      while 0 <= parent[j] < j:
        j = parent[j]
        end[j] = max(end[j], i + 1)
        depth[i] += 1
    made.append((parent, end, depth, steps))
  return [np.stack(x) for x in zip(*made, strict=True)]


def test_forests_and_rows_of_only_padding_pass():
  parent, end, depth, steps = rows_of([0, 0, 1, 1, 4, 4], [0, 1, 2, 2], [])
  steps[0, 1:3] = 7
  forest.check_rows(parent, end, depth, steps)
  forest.check_rows(*(x.reshape(3, 1, 8) for x in (parent, end, depth, steps)))


@pytest.mark.parametrize(
  ("at", "value", "message"),
  [
    ((0, 1, 2), 5, "row 1, column 2: the token continues a later token"),
    ((1, 0, 1), 9, "row 0, column 1: the token has a subtree past the end"),
    ((1, 0, 1), 3, "row 0, column 3: the token is not inside the subtree"),
    ((2, 0, 0), 1, "row 0, column 0: the token is a root and not at"),
    ((2, 0, 3), 9, "row 0, column 3: the token is not one position behind"),
    ((1, 1, 0), 3, "row 1, column 1: the token sees other tokens than"),
    ((3, 0, 7), 2, "row 0, column 7: the token is unused and has a step"),
    ((3, 1, 0), 7, "step 7 lies in more than one row"),
  ],
)
def test_rows_that_are_no_forest_are_refused(at, value, message):
  # Row 0: 0-1-(2, 3); 4-5. Row 1: two roots, the second with two children.
  rows = rows_of([0, 0, 1, 1, 4, 4], [0, 1, 1, 1])
  rows[3][0, 2:4] = 7
  which, line, column = at
  rows[which][line, column] = value
  with pytest.raises(ValueError, match=message):
    forest.check_rows(*rows)


def test_a_cycle_of_tokens_is_refused():
  rows = rows_of([0, 0, 1, 2])
  rows[0][0, 1] = 3
  with pytest.raises(ValueError, match="column 1: the token continues a later"):
    forest.check_rows(*rows)
