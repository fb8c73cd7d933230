"""No estimator makes a finite credit of a number that is not finite."""

import functools

import jax
import numpy as np
import pytest
import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from marks import some

from steppo_jax.algorithms import estimators
from steppo_jax.algorithms import table as algorithms_table

seeds = st.integers(0, 2**31)
poisons = st.sampled_from([np.nan, np.inf, -np.inf])
TAUGHT = ("serl", "stepopsd", "agentopsd")
WHITENED = ("step_gae", "token_gae", "reinforce_pp", "reinforce_pp_baseline")
CREDITED = ("step_gae", "token_gae", "vetta")
# One row for each estimator: clips and averages are not part of it.
ROWS = {row.estimator: row for row in algorithms_table.ALGORITHMS.values()}


@functools.cache
def compiled(name):
  row = ROWS[name]
  options = {"mix": 0.5} if name in TAUGHT else {}
  return jax.jit(
    functools.partial(
      getattr(estimators, name),
      **dict(row.options) | options,
      discount=0.9,
      lambda_=0.8,
    )
  )


def drawn(seed):
  """A batch, its tokens and table, a critic's output, a teacher's gap."""
  batch = reference.ragged(seed)
  tokens, table, value = reference.device_records(batch)
  gap = np.random.default_rng(seed).normal(size=value.shape)
  return batch, tokens, table, value, gap.astype(np.float32)


def credit(name, tokens, table, value, gap):
  extras = estimators.Extras(teacher_gap=gap if name in TAUGHT else None)
  found = compiled(name)(tokens, table, value, extras)
  return np.asarray(found.advantage)


def changed(x, at, value):
  x = np.array(x)
  x.reshape(-1)[at] = value
  return x


def members(batch, ids, steps):
  """Where an advantage of these steps lies: on the step or the token clock."""
  on_steps = np.isin(np.arange(len(batch.live)), steps) & (
    np.bincount(batch.step_ids.reshape(-1), minlength=len(batch.live)) > 0
  )
  return on_steps if ids.ndim == 1 else np.isin(batch.step_ids, steps)


def some_step(batch, seed):
  """A step that acted; the batch is left out if none did."""
  acted = np.unique(batch.step_ids[batch.step_ids > 0])
  assume(acted.size)
  return int(np.random.default_rng(seed).choice(acted))


@pytest.mark.parametrize("name", some(*list(ROWS)[:5], slow=ROWS))
@settings(max_examples=10)
@given(seeds, poisons)
def test_a_reward_is_told_in_its_trajectory(name, seed, poison):
  batch, tokens, table, value, gap = drawn(seed)
  k = some_step(batch, seed)
  plain = credit(name, tokens, table, value, gap)
  table = table.replace(reward=changed(table.reward, k, poison))
  got = credit(name, tokens, table, value, gap)
  own = np.flatnonzero(batch.live & (batch.trajectory == batch.trajectory[k]))
  assert not np.isfinite(got[members(batch, got, own)]).all()
  if name in WHITENED:
    return
  # Groups that it is not in have what they had, to the bit.
  group = np.flatnonzero(batch.live & (batch.group == batch.group[k]))
  outside = ~members(batch, got, group)
  np.testing.assert_array_equal(got[outside], plain[outside])


@pytest.mark.parametrize("name", CREDITED)
@settings(max_examples=10)
@given(seeds, poisons)
def test_a_value_is_told_in_its_trajectory(name, seed, poison):
  batch, tokens, table, value, gap = drawn(seed)
  k = some_step(batch, seed)
  value = changed(value, batch.boundary[k], poison)
  got = credit(name, tokens, table, value, gap)
  assert not np.isfinite(got[members(batch, got, [k])]).any()


@pytest.mark.parametrize("name", TAUGHT)
@settings(max_examples=10)
@given(seeds)
def test_a_teacher_is_told_at_its_step(name, seed):
  batch, tokens, table, value, gap = drawn(seed)
  k = some_step(batch, seed)
  at = np.flatnonzero(batch.step_ids.reshape(-1) == k)[0]
  got = credit(name, tokens, table, value, changed(gap, at, np.nan))
  assert np.isnan(got[members(batch, got, [k])]).any()


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=10)
@given(seeds, poisons)
def test_what_is_not_read_spoils_nothing(name, seed, poison):
  batch, tokens, table, value, gap = drawn(seed)
  plain = credit(name, tokens, table, value, gap)
  read = np.zeros(value.size, bool)
  read[batch.boundary[batch.live]] = True
  read[batch.bootstrap_at[batch.live & batch.truncated]] = True
  acted = (batch.step_ids > 0).reshape(-1)
  read[np.roll(acted, -1)] = True  # a token's parent stands before it
  got = credit(
    name,
    tokens,
    table.replace(reward=np.where(batch.live, table.reward, poison)),
    np.where(read.reshape(value.shape), value, poison),
    np.where(batch.step_ids > 0, gap, poison),
  )
  np.testing.assert_array_equal(got, plain)
