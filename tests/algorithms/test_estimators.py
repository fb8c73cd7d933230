"""Credit assignment on whole batches."""

import functools

import base_batch as base
import jax
import numpy as np
import pytest
import reference
from credit_runs import NONE, close, f32, run, seeds
from hypothesis import given

from steppo_jax.algorithms import estimators, options
from steppo_jax.algorithms import table as algorithms_table


@given(seeds)
def test_step_gae_reads_values_at_boundaries_and_whitens_what_acted(seed):
  ragged = reference.ragged(seed)
  tokens, table, value = reference.device_records(ragged)
  flat = value.reshape(-1)
  raw = reference.step_gae(
    ragged.reward,
    flat[ragged.boundary],
    ragged.last,
    ragged.live,
    np.where(ragged.truncated, flat[ragged.bootstrap_at], 0),
    0.9,
    0.8,
  )
  acted = ragged.live & np.isin(np.arange(9), ragged.step_ids)
  result = run("step_gae", tokens, table, value)
  close(result.advantage, reference.whiten(raw, acted))
  target = np.where(ragged.live, raw + flat[ragged.boundary], 0)
  close(result.target, target)


@given(seeds)
def test_token_gae_reads_values_at_parents(seed):
  ragged = reference.ragged(seed)
  tokens, table, value = reference.device_records(ragged)
  value_t = np.roll(value, 1, axis=1)
  raw = reference.token_gae(
    ragged.reward,
    value_t,
    ragged.step_ids,
    ragged.last,
    ragged.live,
    np.where(ragged.truncated, value.reshape(-1)[ragged.bootstrap_at], 0),
    0.9,
    0.8,
  )
  action = ragged.step_ids > 0
  result = run("token_gae", tokens, table, value)
  close(result.advantage, reference.whiten(raw, action))
  close(result.target, np.where(action, raw + value_t, 0))


@given(seeds)
def test_grpo_scores_the_return_of_the_trajectory(seed):
  ragged = reference.ragged(seed)
  tokens, table, value = reference.device_records(ragged)
  lists = reference.step_lists(ragged.last, ragged.live)
  gain = np.array([ragged.reward[steps].sum() for steps in lists])
  group = [ragged.group[steps[0]] for steps in lists]
  every = np.ones(len(lists), bool)
  _, score, _ = reference.group_scores(gain, group, every, 1e-6)
  expected = np.zeros(9)
  for steps, x in zip(lists, score, strict=True):
    expected[steps] = x
  expected *= np.isin(np.arange(9), ragged.step_ids)
  result = run("grpo", tokens, table, value, eps=1e-6, singleton="zero")
  close(result.advantage, expected)
  assert result.target is None


@given(seeds)
def test_the_order_of_rows_changes_nothing(seed):
  ragged = reference.ragged(seed)
  tokens, table, value = reference.device_records(ragged)
  order = np.random.default_rng(seed).permutation(6)
  move = lambda at: (np.argsort(order)[at // 10] * 10 + at % 10).astype(
    np.int32
  )
  moved = jax.tree.map(lambda x: x[order], tokens)
  other = table.replace(
    boundary=move(table.boundary), bootstrap_at=move(table.bootstrap_at)
  )
  for name in ("step_gae", "token_gae"):
    first = run(name, tokens, table, value)
    second = run(name, moved, other, value[order])
    if name == "token_gae":
      first = jax.tree.map(lambda x: x[order], first)
    jax.tree.map(close, first, second)


def test_an_empty_step_gets_no_advantage_and_still_a_target():
  tokens, table = base.records()
  empty = np.where(tokens.step_ids == 2, 0, tokens.step_ids)
  tokens = tokens.replace(step_ids=empty)
  number = np.where(np.arange(7) == 2, 0, table.num_tokens)
  table = table.replace(num_tokens=number.astype(np.int32))
  value = np.zeros(empty.shape, np.float32)
  value[:, 0] = [0.5, 0.4, 0.7, 0.2, 0.1, 1.5]
  result = run("step_gae", tokens, table, value)
  # Golden case 3.
  white = [0, 0.268619, 0, 0.550477, -0.260387, -1.583375, 1.024666]
  close(result.advantage, white)
  close(result.target, [0, 0.68112, 0.846, 1, 0.158, -0.5, 2])


def test_zero_bootstrap_makes_truncation_termination():
  tokens, table = base.records()
  table = table.replace(truncated=np.arange(7) == 5)
  value = np.ones(tokens.step_ids.shape, np.float32)
  both = {}
  for mode in ("value", "zero"):
    seen = estimators.resolve_truncation(tokens, table, bootstrap=mode)
    both[mode] = run("step_gae", *seen, value).target
  # -.5 + .9 * 1 at the end of B, -.5 without.
  close(both["value"][5] - both["zero"][5], 0.9)
  close(both["value"][4] - both["zero"][4], 0.9 * 0.72)
  close(both["value"][:4], both["zero"][:4])


def test_drop_last_leaves_the_step_out_and_bootstraps_from_its_prompt():
  tokens, table = base.records()
  table = table.replace(truncated=np.isin(np.arange(7), [5, 6]))
  seen, kept = estimators.resolve_truncation(
    tokens, table, bootstrap="drop_last"
  )
  np.testing.assert_array_equal(kept.live, [0, 1, 1, 1, 1, 0, 0])
  np.testing.assert_array_equal(seen.step_ids[4:], np.zeros((2, 5)))
  value = np.zeros(tokens.step_ids.shape, np.float32)
  value[3, 0], value[4, 0] = 0.2, 0.1
  # B0 becomes the last step: target .5 + .9 * V(B1) = .59.
  result = run("step_gae", seen, kept, value)
  close(result.target, [0, 0.5184, 0.72, 1, 0.59, 0, 0])
  assert result.advantage[5] == result.advantage[6] == 0


def test_dropping_an_episode_of_one_step_leaves_the_one_before_it_ended():
  tokens, table = base.records()
  table = table.replace(truncated=np.arange(7) == 6)
  _, kept = estimators.resolve_truncation(tokens, table, bootstrap="drop_last")
  np.testing.assert_array_equal(kept.live, [0, 1, 1, 1, 1, 1, 0])
  assert not kept.truncated.any()
  np.testing.assert_array_equal(kept.bootstrap_at, table.bootstrap_at)


def test_an_unknown_bootstrap_is_refused():
  with pytest.raises(ValueError, match="not 'critic'"):
    estimators.resolve_truncation(*base.records(), bootstrap="critic")


def test_group_scores_of_the_golden_batch():
  args = (*base.records(), None)
  a, b = [1, 2, 3], [4, 5]
  score = lambda name, **constants: np.asarray(
    run(name, *args, **constants).advantage
  )
  dr_grpo = score("dr_grpo", singleton="raw")
  close(dr_grpo[[*a, *b, 6]], [0.5] * 3 + [-0.5] * 2 + [2])
  rloo = score("rloo", singleton="raw", kl_reward=0.0)
  close(rloo[[*a, *b, 6]], [1] * 3 + [-1] * 2 + [2])
  baseline = score("reinforce_pp_baseline", singleton="raw")
  # Golden case 7: whitened over the 9, 4 and 1 tokens of A, B and C.
  close(baseline[[0, 3, 5], 1], [0.267261, -1.229402, 2.512256])


def test_rloo_pays_the_divergence_from_its_return():
  tokens, table = base.records()
  gap = np.where(tokens.step_ids == 1, 0.5, 0.0).astype(np.float32)
  result = estimators.rloo(
    tokens,
    table,
    None,
    estimators.Extras(reference_gap=gap),
    discount=1.0,
    lambda_=1.0,
    singleton="zero",
    kl_reward=0.1,
  )
  # A returns 1 - .1 * (2 tokens * .5) = .9, B 0.
  close(np.asarray(result.advantage)[[1, 4]], [0.9, -0.9])


def test_reinforce_pp_hands_the_last_reward_to_every_earlier_step():
  result = run("reinforce_pp", *base.records(), None, discount=1.0)
  # Returns to go: A 1 1 1, B 0 -.5, C 2, over 2 3 4 2 2 1 tokens.
  gain = np.repeat([1, 1, 1, 0, -0.5, 2], [2, 3, 4, 2, 2, 1])
  white = (gain - gain.mean()) / gain.std(ddof=1)
  close(np.asarray(result.advantage)[base.records()[0].step_ids > 0], white)


def test_gigpo_adds_the_score_among_steps_of_one_state():
  constants = {"discount": 0.95, "lambda_": 1.0, "singleton": "zero"}
  both = run("gigpo", *base.records(), None, omega=2.0, eps=1e-6, **constants)
  # A z-score of two is +-.707107: .707107 * (1 + 2), and 1 where alone.
  close(both.advantage, [0, 2.12132, 2.12132, 0.707106, -2.12132, -2.12132, 0])


def test_gagpo_undiscounted_is_the_return_minus_its_state_mean():
  tokens, table = base.records()
  result = run(
    "gagpo", tokens, table, None, discount=1.0, lambda_=1.0, eps=0.0,
    singleton="zero",
  )  # fmt: skip
  # Returns A 1 1 1, B 0 -.5; state means .5, .25, 1; C is alone.
  raw = np.array([0.5, 0.75, 0, -0.5, -0.75])
  close(result.advantage[1:6], raw / raw.std(ddof=1))
  assert result.advantage[6] == 0


def test_vetta_with_one_token_a_step_is_step_gae():
  tokens, table = base.small([1, 1, 1], reward=[1, 0, 2], last=[0, 1, 1])
  value = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
  fused = run(
    "vetta", tokens, table, value, alpha=5.0, token_discount=1.0,
    token_lambda=1.0,
  )  # fmt: skip
  step = run("step_gae", tokens, table, value)
  # Before it is whitened.
  close(np.asarray(fused.advantage)[:, 1], step.target[1:] - value[:, 0])


def test_segments_end_where_entropy_is_high_and_become_steps():
  # Steps of 3, 0 and 2 tokens; one of the five tokens ends a segment early.
  tokens, table = base.small(
    [3, 0, 2], reward=[1, 2, 3], last=[0, 0, 1], group=[4, 4, 4]
  )
  entropy = f32([[9, 0.1, 0.8, 0.2], [9, 9, 9, 9], [9, 0.3, 0.1, 9]])
  seen, cut = estimators.resegment(
    tokens, table, entropy, share=0.2, num_steps=7
  )
  np.testing.assert_array_equal(
    seen.step_ids, [[0, 1, 1, 2], [0, 0, 0, 0], [0, 4, 4, 0]]
  )
  np.testing.assert_array_equal(cut.live, [0, 1, 1, 1, 1, 0, 0])
  np.testing.assert_array_equal(cut.reward, [0, 0, 1, 2, 3, 0, 0])
  np.testing.assert_array_equal(cut.last, [1, 0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(cut.group, [0, 4, 4, 4, 4, 0, 0])
  # The second segment is read at the token before it, the others at prompts.
  np.testing.assert_array_equal(cut.boundary[1:5], [0, 2, 4, 8])


def test_a_share_of_zero_leaves_the_steps_as_they_are():
  tokens, table = base.records()
  entropy = np.random.default_rng(0).uniform(size=tokens.step_ids.shape)
  seen, cut = estimators.resegment(
    tokens, table, f32(entropy), share=0.0, num_steps=7
  )
  jax.tree.map(np.testing.assert_array_equal, (seen, cut), (tokens, table))


@pytest.mark.parametrize("name", ["serl", "stepopsd", "agentopsd"])
def test_a_teacher_changes_no_sign_and_is_required(name):
  tokens, table = base.records()
  row = algorithms_table.get(name)
  gap = np.random.default_rng(0).normal(size=tokens.step_ids.shape)
  estimator = functools.partial(
    getattr(estimators, name), discount=1.0, lambda_=1.0, **dict(row.options)
  )
  shaped = estimator(tokens, table, None, estimators.Extras(f32(gap))).advantage
  plain = run("grpo", tokens, table, None, eps=1e-6, singleton="zero").advantage
  if shaped.ndim == 2:
    plain = plain[tokens.step_ids]
  np.testing.assert_array_equal(np.sign(shaped), np.sign(plain))
  assert not np.allclose(shaped, plain)
  with pytest.raises(ValueError, match="teacher_gap is missing"):
    estimator(tokens, table, None, NONE)


def test_agentopsd_begins_at_the_share_of_the_group_that_succeeded():
  # A succeeds and B does not: the belief begins at 1/2. A: e = 1 0 -1 with
  # decay 1: B = .5 .731 .731 .5, q = .231 0 -.231, z = +-1.2247. B fails:
  # q = -(B - .5) of equal size for e = 0: nothing moves.
  tokens, table = base.small(
    [2, 1, 1, 1, 1],
    reward=[0, 0, 1, 0, 0],
    last=[0, 0, 1, 0, 1],
    trajectory=[0, 0, 0, 1, 1],
    success=[1, 1, 1, 0, 0],
  )
  gap = np.full(tokens.step_ids.shape, 9, np.float32)
  gap[tokens.step_ids > 0] = [0.5, 0.5, 0, -1, 0, 0]
  run_with = functools.partial(
    estimators.agentopsd, tokens, eps=0.0, singleton="zero", decay=1.0, mix=1.0,
    band=0.5, discount=1.0, lambda_=1.0,
  )  # fmt: skip
  got = run_with(table, None, estimators.Extras(teacher_gap=gap)).advantage
  weights = np.array([1.5, 1, 0.5, 1, 1])
  close(got[1:], np.sqrt(0.5) * np.array([1, 1, 1, -1, -1]) * weights)
  with pytest.raises(ValueError, match=r"table\.success is missing"):
    run_with(
      table.replace(success=None), None, estimators.Extras(teacher_gap=gap)
    )


def test_vetta_reads_a_head_for_each_clock_and_whitens_nothing():
  tokens, table = base.small([2, 3], reward=[0, 1], last=[0, 1])
  turn, token = np.random.default_rng(0).normal(size=(2, 2, 4))
  turn, token = f32(turn), f32(token)
  got = run(
    "vetta", tokens, table, (turn, token), alpha=2.0, token_discount=1.0,
    token_lambda=1.0,
  )  # fmt: skip
  # The first head alone makes the credit of steps, at their boundaries.
  end = 1 - turn[1, 0]
  first = 0.9 * turn[1, 0] - turn[0, 0] + 0.72 * end
  close(np.mean(got.advantage[0, 1:3]), first)
  close(np.mean(got.advantage[1, 1:4]), end)
  # Undiscounted, a token's advantage is 1 less the second head before it.
  before = token[1, :3]
  close(got.advantage[1, 1:] - end, 2 * (before.mean() - before))
  close(got.target[0], [0, first + turn[0, 0], 1])
  close(got.target[1], np.where(tokens.step_ids > 0, 1, 0))


@pytest.mark.parametrize("divide", [False, True])
def test_sapo_rec_compares_steps_of_one_place_in_one_group(divide):
  # Two groups of three episodes, one of which lacks its second step.
  right = np.array([[1, 1], [1, 0], [0, 9], [0, 1], [1, 1], [0, 0]])
  steps = [k for n in range(6) for k in ([1, 1] if n != 2 else [1])]
  tokens, table = base.small(
    steps,
    reward=[x for n in range(6) for x in right[n][: 1 if n == 2 else 2]],
    last=[n == 2 or k for n in range(6) for k in range(1 if n == 2 else 2)],
    trajectory=[n for n in range(6) for _ in range(1 if n == 2 else 2)],
    group=[n // 3 for n in range(6) for _ in range(1 if n == 2 else 2)],
  )
  got = run("sapo_rec", tokens, table, None, eps=0.0, divide=divide).advantage
  expected = []
  for n in range(6):
    for k in range(1 if n == 2 else 2):
      peers = [m for m in range(6) if m // 3 == n // 3 and (m, k) != (2, 1)]
      values = right[peers, k]
      score = right[n, k] - values.mean()
      expected.append(score / values.std() if divide else score)
  close(got[1:], expected)


@pytest.mark.parametrize(
  ("span", "weighted"),
  [("step", [1, 1, 1, 1]), ("action", [0, 1, 1, 1]), ("answer", [0, 0, 0, 1])],
)
def test_stepopsd_reweights_a_span_and_can_equalise_steps(span, weighted):
  # A: a thought, an action; two actions. B fails. Gaps of 9 clip at 1.2.
  tokens, table = base.small(
    [2, 2, 1], reward=[0, 1, 0], last=[0, 1, 1], trajectory=[0, 0, 1]
  )
  ids = tokens.step_ids
  thought = np.zeros(ids.shape, bool)
  thought[0, 1] = thought[1, 1] = True
  thought[1, 1] = span == "answer"
  tokens = tokens.replace(reasoning=thought)
  run_with = functools.partial(
    estimators.stepopsd, tokens, table, None,
    estimators.Extras(teacher_gap=np.where(ids > 0, 9, np.nan).astype("f4")),
    discount=1.0, lambda_=1.0, eps=0.0, singleton="zero", low=0.8, high=1.2,
    mix=0.5, limit=2.0,
  )  # fmt: skip
  a = np.sqrt(0.5)
  got = run_with(span=span, equal_step_mean_abs=False).advantage
  found = a * (1 + 0.1 * np.array(weighted))
  close(got[:2, 1:], found.reshape(2, 2))
  equal = np.asarray(run_with(span=span, equal_step_mean_abs=True).advantage)
  sizes = np.abs(equal[:2, 1:]).mean(1)
  close(sizes, np.full(2, found.mean()))
  with pytest.raises(ValueError, match="span is 'step', 'action' or 'answer'"):
    run_with(span="word", equal_step_mean_abs=False)
  if span != "step":
    row = options.AlgorithmConfig("stepopsd", span=span).row()
    assert "reasoning" in row.wants
    with pytest.raises(ValueError, match=r"pack\(reasoning=True\)"):
      estimators.stepopsd(
        tokens.replace(reasoning=None), *run_with.args[1:],
        **run_with.keywords, span=span, equal_step_mean_abs=False,
      )  # fmt: skip
