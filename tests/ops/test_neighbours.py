"""What the methods beside StepPO are made of, against numbers and slow loops.

`focus_weight` is of ActFocus, `equal_step_scale` of StepOPSD, `belief_filter`
of AgentOPSD, `group_by_index` of SAPO for recommendation and
`turn_and_token_gae` of VETTA.
"""

import functools
import math
import pathlib
import re

import base_batch as base
import jax
import neighbour_loops as loops
import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from marks import some

from steppo_jax.ops import groups, losses, returns, shaping

seeds = st.integers(0, 2**31)
poisons = st.sampled_from([np.nan, np.inf, -np.inf, 1e30])
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
same = np.testing.assert_array_equal
f32 = base.f32


def test_every_case_is_read_by_a_test(neighbours):
  text = pathlib.Path(__file__).read_text()
  read = set(re.findall(r'"(\w+)"', text))
  assert set(neighbours) <= read


@pytest.mark.parametrize("name", ["actfocus", "actfocus_uniform"])
def test_actfocus_weighs_the_loss(neighbours, name):
  case = neighbours[name]
  given_, want = case["inputs"], case["expected"]
  reasoning = np.array([given_["reasoning"]])
  weight = shaping.focus_weight(
    f32([given_["E"]]), reasoning, ~reasoning,
    alpha=given_["alpha"], beta=given_["beta"],
  )  # fmt: skip
  base.close(weight[0], want["weight"])
  base.close(weight.sum(), want["weight_sum"])
  loss, _ = losses.clipped_surrogate(
    f32(given_["rho"]), f32(given_["A"]), clip_low=0.2, clip_high=0.28,
    dual_clip=None,
  )  # fmt: skip
  base.close((weight[0] * loss).sum() / weight.sum(), want["loss"])


def test_stepopsd_reweights_tokens(neighbours):
  case = neighbours["stepopsd"]
  given_, want = case["inputs"], case["expected"]
  run = lambda mix: shaping.reweight_sigmoid(
    f32([given_["A"]]), f32([given_["delta"]]), np.ones((1, 4), bool),
    low=1 - given_["clip"], high=1 + given_["clip"], mix=mix,
  )[0]  # fmt: skip
  base.close(run(given_["mix"]), want["advantage"])
  base.close(run(1.0) / f32(given_["A"]), want["weight"])


def test_stepopsd_brings_steps_to_one_size(neighbours):
  case = neighbours["stepopsd_step_norm"]
  ids = np.array([[1, 1, 1, 0], [2, 2, 0, 0]])
  advantage = np.full((2, 4), np.nan, np.float32)
  rows = case["inputs"]["absolute_advantages_by_step"]
  for row, values in enumerate(rows):
    advantage[row, : len(values)] = values
  scale = shaping.equal_step_scale(
    advantage, ids, np.zeros(3, np.int32), num_steps=3,
    limit=case["inputs"]["limit"],
  )  # fmt: skip
  base.close(scale[1:], case["expected"]["coefficient"])
  for k, (values, want) in enumerate(
    zip(rows, case["expected"]["advantage"], strict=True)
  ):
    base.close(f32(values) * scale[1 + k], want)


@pytest.mark.parametrize("name", some("vetta", slow=["vetta_truncated"]))
def test_vetta_adds_what_tokens_differ_by(neighbours, name):
  case = neighbours[name]
  x, want = case["inputs"], case["expected"]
  steps = len(x["rew"])
  value = np.full((steps, 4), np.nan, np.float32)
  ids = np.zeros((steps, 4), np.int32)
  for k, values in enumerate(x["vtok"]):
    value[k, : len(values)], ids[k, : len(values)] = values, k + 1
  after = lambda name: f32([np.nan] * steps + [x[name]])
  got = returns.turn_and_token_gae(
    f32([0, *x["rew"]]), f32([0, *x["vturn"]]), value, ids,
    np.arange(steps + 1) % steps == 0, after("boot_turn"), after("boot_tok"),
    alpha=x["alpha"], turn_discount=x["turn_discount"],
    turn_lambda=x["turn_lambda"], token_discount=x["token_discount"],
    token_lambda=x["token_lambda"],
  )  # fmt: skip
  base.close(got.turn_advantage[1:], want["turn_advantage"])
  base.close(got.turn_target[1:], want["turn_target"])
  flat = lambda rows: np.concatenate(rows)
  base.close(got.token_target[ids > 0], flat(want["token_target"]))
  base.close(got.advantage[ids > 0], flat(want["advantage"]))


@pytest.mark.parametrize("name", ["agentopsd", "agentopsd_negative"])
def test_agentopsd_filters_a_belief(neighbours, name):
  case = neighbours[name]
  x, want = case["inputs"], case["expected"]
  evidence = [sum(gaps) for gaps in x["delta_steps"]]
  run = lambda mix: shaping.belief_filter(
    f32([np.nan, *evidence]), f32([np.nan] + [x["B0"]] * 3),
    f32([np.nan] + [x["A"]] * 3), np.array([True, False, False, True]),
    mix=mix, band=x["band"], decay=x["decay"],
  )  # fmt: skip
  belief, advantage = run(x["mix"])
  base.close(belief[1:], want["belief"][1:])
  base.close(advantage[1:], want["advantage"])
  base.close(run(1.0)[1][1:] / x["A"], want["weight"])


@pytest.mark.parametrize("key", ["centred", "zscore"])
def test_sapo_compares_equal_places(neighbours, key):
  case = neighbours["sapo_rec"]
  x = f32(case["inputs"]["correct_by_member_and_step"])
  got = groups.group_by_index(
    x.reshape(-1), np.zeros(12, np.int32), np.tile(np.arange(3), 4),
    np.ones(12, bool), num_groups=1, num_indices=3, eps=1e-6,
    divide=key == "zscore",
  )  # fmt: skip
  base.close(got.reshape(x.shape), case["expected"][key])


def _mask(rng, shape, p):
  return rng.uniform(size=shape) < p


@functools.partial(jax.jit, static_argnames=("num_steps",))
def focus(energy, reasoning, action, alpha, beta, num_steps=None):
  return shaping.focus_weight(energy, reasoning, action, alpha=alpha, beta=beta)


@given(seeds, poisons)
def test_focus_weights_are_those_of_the_loop(seed, poison):
  rng = np.random.default_rng(seed)
  energy = f32(10 * rng.normal(size=(3, 5)))
  sampled = _mask(rng, (3, 5), rng.uniform())
  action = sampled & _mask(rng, (3, 5), rng.uniform())
  reasoning = sampled & ~action
  alpha, beta = rng.uniform(0, 2, size=2)
  read = np.where(action, energy, f32(poison))
  got = focus(read, reasoning, action, alpha, beta)
  close(got, loops.focus_weight(energy, reasoning, action, alpha, beta))
  same(np.asarray(got)[~sampled], 0)
  same(focus(read, reasoning, action, 1.0, 0.0), sampled.astype(np.float32))


def test_equal_energies_say_nothing_of_actions():
  ones = np.ones((2, 3), bool)
  got = shaping.focus_weight(
    np.full((2, 3), -12.3, np.float32), ~ones, ones, alpha=0.1, beta=0.5
  )
  same(got, np.full((2, 3), 1.25, np.float32))


def test_an_energy_that_is_not_a_number_is_told():
  energy = f32([[np.nan, 1, 2]])
  action = np.array([[True, True, False]])
  got = shaping.focus_weight(energy, ~action, action, alpha=0.1, beta=0.5)
  assert np.isnan(got[0, :2]).all()
  base.close(got[0, 2], 0.1)


scale = jax.jit(
  functools.partial(shaping.equal_step_scale, num_steps=9),
  static_argnames=("num_steps",),
)


@given(seeds, poisons)
def test_step_scales_are_those_of_the_loop(seed, poison):
  batch = reference.ragged(seed)
  rng = np.random.default_rng(seed)
  advantage = f32(rng.normal(size=batch.step_ids.shape))
  # Some steps have no advantage at all.
  advantage *= _mask(rng, 9, 0.8)[batch.step_ids]
  limit = rng.uniform(1, 5)
  read = np.where(batch.step_ids > 0, advantage, f32(poison))
  got = scale(read, batch.step_ids, batch.trajectory, limit=limit)
  close(
    got,
    loops.equal_step_scale(advantage, batch.step_ids, batch.trajectory, limit),
  )
  assert ((got >= 0.999999 / limit) & (got <= 1.000001 * limit)).all()
  same(scale(read, batch.step_ids, batch.trajectory, limit=1.0), np.ones(9))


belief_filter = jax.jit(shaping.belief_filter)


@given(seeds, poisons)
def test_beliefs_are_those_of_the_loop(seed, poison):
  batch = reference.ragged(seed)
  rng = np.random.default_rng(seed)
  evidence, advantage = f32(rng.normal(size=(2, 9)))
  advantage = np.where(_mask(rng, 9, 0.8), advantage, 0).astype(np.float32)
  # 0 and 1 are held off the ends.
  success = f32(rng.integers(0, 5, size=9) / 4)
  success = success[batch.trajectory]
  constants = dict(
    zip(("mix", "band", "decay"), rng.uniform(size=3), strict=True)
  )
  lists = reference.step_lists(batch.last, batch.live)
  want = loops.belief_filter(evidence, success, advantage, lists, **constants)
  # Moves that hardly differ are divided by how they differ: of that float32
  # keeps no five digits.
  assume(_spread(want[0], success, advantage, lists) > 1e-2)
  read = [
    np.where(batch.live, x, f32(poison)) for x in (evidence, success, advantage)
  ]
  got = belief_filter(*read, batch.last, **constants)
  for x, y in zip(got, want, strict=True):
    close(np.asarray(x)[batch.live], y[batch.live])
  for name in ("mix", "band"):
    _, kept = belief_filter(*read, batch.last, **constants | {name: 0.0})
    same(np.asarray(kept)[batch.live], advantage[batch.live])


def _spread(belief, success, advantage, lists):
  """The least deviation of the moves of a trajectory of several steps."""
  found = [math.inf]
  for steps in (steps for steps in lists if len(steps) > 1):
    start = np.clip(success[steps[0]], 1e-3, 1 - 1e-3)
    moves = np.sign(advantage[steps]) * np.diff([start, *belief[steps]])
    if moves.any():  # Of none there is nothing to divide.
      found.append(np.std(moves))
  return min(found)


def test_evidence_that_is_not_a_number_spoils_its_own_trajectory():
  ones = np.ones(6, np.float32)
  last = np.array([True, False, True, False, True, True])
  evidence = f32([0, np.nan, 1, 2, -1, 5])
  belief, advantage = shaping.belief_filter(
    evidence, 0.5 * ones, ones, last, mix=0.5, band=0.2, decay=0.9
  )
  for x in (belief, advantage):
    same(np.isnan(x), [False, True, True, False, False, False])


by_index = jax.jit(
  groups.group_by_index,
  static_argnames=("num_groups", "num_indices", "divide"),
)


@given(seeds, poisons, st.booleans())
def test_places_are_compared_as_in_the_loop(seed, poison, divide):
  rng = np.random.default_rng(seed)
  x, live = f32(rng.integers(0, 2, size=12)), _mask(rng, 12, 0.8)
  group, index = rng.integers(0, 3, size=(2, 12)).astype(np.int32)
  want = loops.group_by_index(x, group, index, live, 0.1, divide)
  nowhere = np.where(live, 0, 99).astype(np.int32)
  got = by_index(
    np.where(live, x, f32(poison)), group + nowhere, index + nowhere, live,
    num_groups=3, num_indices=3, eps=0.1, divide=divide,
  )  # fmt: skip
  close(got, want)


def test_a_place_out_of_range_is_told_and_compared_with_no_other():
  # Index 2 of group 0 would be index 0 of group 1 in numbers of two.
  arrays = (
    f32([1, 0, 5, 3]), np.array([0, 0, 0, 1]), np.array([0, 0, 2, 0]),
    np.ones(4, bool),
  )  # fmt: skip
  sizes = dict(num_groups=2, num_indices=2, eps=0.0, divide=False)
  same(by_index(*arrays, **sizes), f32([0.5, -0.5, np.nan, 0]))
  with pytest.raises(ValueError, match="index_k holds 2, but num_indices=2"):
    groups.group_by_index(*arrays, **sizes)


both_clocks = jax.jit(returns.turn_and_token_gae)


@given(seeds, poisons)
def test_two_clocks_are_those_of_the_loops(seed, poison):
  batch = reference.ragged(seed)
  rng = np.random.default_rng(seed)
  token_value = f32(rng.normal(size=batch.step_ids.shape))
  turn_value = f32(rng.normal(size=9))
  after = np.where(batch.truncated, rng.normal(size=(2, 9)), 0)
  discount, lambda_, alpha = rng.uniform(size=3)
  acted = batch.step_ids > 0
  got = both_clocks(
    batch.reward, turn_value, np.where(acted, token_value, f32(poison)),
    batch.step_ids, batch.last,
    *(np.where(batch.last, f32(x), f32(poison)) for x in after),
    alpha=alpha, turn_discount=discount, turn_lambda=lambda_,
    token_discount=1.0, token_lambda=0.9,
  )  # fmt: skip
  want = loops.turn_and_token_gae(
    batch.reward, turn_value, token_value, batch.step_ids, batch.last,
    batch.live, after, alpha, (discount, lambda_), (1.0, 0.9),
  )  # fmt: skip
  for x, y in zip(got, want, strict=True):
    where = batch.live if x.ndim == 1 else np.ones_like(acted)
    close(np.asarray(x)[where], y[where])
  same(np.asarray(got.advantage)[~acted], 0)


def test_poison_reaches_no_gradient():
  ids = np.array([[0, 1, 1, 2, 2]])
  thought = np.array([[False, False, True, False, False]])
  poison = f32([[np.nan, 0.5, 1.0, -1.0, 0.2]])
  last = np.array([True, False, False, True])
  x_k = f32([np.nan, 0.3, -0.2, 0.1])
  trajectory = np.zeros(4, np.int32)
  slopes = [
    jax.grad(
      lambda x: shaping.focus_weight(
        x, thought, (ids > 0) & ~thought, alpha=0.1, beta=0.5
      )[0, 1]
    )(poison),
    jax.grad(
      lambda x: shaping.equal_step_scale(
        x, ids, trajectory, num_steps=4, limit=9.0
      ).sum()
    )(poison),
    jax.grad(
      lambda x: shaping.belief_filter(
        x, f32([0, 0.4, 0.4, 0.4]), f32([0, 1, 1, 1]), last, mix=0.5,
        band=3.0, decay=0.9,
      )[1][3]
    )(x_k),
    jax.grad(
      lambda x: groups.group_by_index(
        x, trajectory, trajectory, ~np.isnan(x_k), num_groups=1, num_indices=1,
        eps=0.1, divide=True,
      )[1]
    )(x_k),
  ]  # fmt: skip
  for slope in slopes:
    # Behind the first slot, which is poisoned.
    slope = np.asarray(slope).reshape(-1)[1:]
    assert np.isfinite(slope).all()
    assert slope.any(), slopes
