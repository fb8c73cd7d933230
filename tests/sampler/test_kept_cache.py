"""A cache that outlives the weights that made it, and what that costs."""

import dataclasses

import jax
import numpy as np
import pytest
import worlds

from steppo_jax import types
from steppo_jax.sampler import options
from steppo_jax.training import config


def gaps_across_versions(*, keep, step):
  """Mean distances to the learner, and tokens read, before and after a change.

  Of one conversation whose weights change by a relative `step` halfway.
  """
  engine = worlds.engine(keep_cache_across_versions=keep)
  noise = np.random.default_rng(1)
  other = jax.tree.map(
    lambda x: x * (1 + step * noise.normal(size=x.shape).astype(np.float32)),
    worlds.policy(),
  )
  ids, gaps, read = np.arange(10, 40), [], []
  for version, policy in enumerate((worlds.policy(), other)):
    engine.swap(engine.prepare(policy), version)
    before, off = engine.counters.prefill_tokens, []
    for turn in range(3):
      answer = engine.generate(
        [types.Request("a", ids, (version, turn), 6, 1.0)]
      )[0]
      assert answer.policy_version == version
      whole = np.concatenate([ids, answer.response_ids])
      want = worlds.learner_logprobs(whole, params=policy)[len(ids) :]
      off.append(np.abs(answer.behaviour_logp - want).mean())
      ids = np.append(whole, 5)
    gaps.append(np.mean(off))
    read.append(engine.counters.prefill_tokens - before)
  return gaps, read


def test_a_cache_that_outlives_its_weights_is_told_by_the_gap():
  rebuilt, read_all = gaps_across_versions(keep=False, step=0.05)
  assert max(rebuilt) < 1e-5
  kept, read_new = gaps_across_versions(keep=True, step=0.05)
  assert kept[0] < 1e-5
  # No policy of the learner sampled it: the more they differ, the further off.
  assert 1e-3 < kept[1] < 2
  closer, _ = gaps_across_versions(keep=True, step=0.0005)
  assert closer[1] < kept[1] / 20
  # That is what the reading costs.
  assert read_new[1] < 10 < 30 < read_all[1]


def test_where_no_cache_outlives_its_weights_it_is_refused():
  kept = options.SamplerConfig(keep_cache_across_versions=True)
  run = config.RunConfig("w", sampler=kept)
  late = dataclasses.replace(run.rollout, staleness=1)
  dataclasses.replace(run, rollout=late).check_training()
  served = dataclasses.replace(late, engine="http")
  agents = dataclasses.replace(late, source="agents")
  for rollout in (run.rollout, served, agents):
    with pytest.raises(ValueError, match="while weights change: set rollout"):
      dataclasses.replace(run, rollout=rollout).check_training()
