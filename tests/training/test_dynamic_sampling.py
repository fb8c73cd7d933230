"""Updates that play on until enough groups differ in reward."""

import dataclasses

import pytest
import small_runs
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.envs import base
from steppo_jax.envs.household import env as household
from steppo_jax.processes import kill_points
from steppo_jax.rollout import journal
from steppo_jax.rollout.options import DynamicSampling
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics
from steppo_jax.training import config, dynamic_sampling, train

ROUNDS = DynamicSampling(max_rounds=3)
_COUNTS = "dynamic_sampling/"


@pytest.fixture(autouse=True)
def paid(monkeypatch):
  """An odd number of letters is paid: some groups of two differ by it.

  Counts how often an episode was begun.
  """
  begun = []
  step, reset = household.HouseholdEnv.step, household.HouseholdEnv.reset

  def counted(self, task, seed):
    begun.append((task.uid, seed))
    return reset(self, task, seed)

  monkeypatch.setattr(household.HouseholdEnv, "reset", counted)
  monkeypatch.setattr(
    household.HouseholdEnv, "step",
    lambda self, text: step(self, text)._replace(reward=float(len(text) % 2)),
  )  # fmt: skip
  return begun


def options(folder, name, **changes):
  made = small_runs.small_config(
    folder,
    num_updates=2,
    tasks_per_update=4,
    group_size=2,
    keep_journals=5,
    algorithm=config.AlgorithmConfig(name="grpo", kl_coef=0.0),
    evaluation=config.EvalConfig(every=2, episodes=2),
    **changes,
  )
  one_step = dataclasses.replace(made.rollout, max_steps=1)
  return dataclasses.replace(made, rollout=one_step, run_dir=str(folder / name))


def lines(folder):
  """Metrics without times, which no two runs share."""
  timed = ("minutes", "seconds", "time/", "_per_s", "compiles/")
  return [
    {k: v for k, v in line.items() if not any(t in k for t in timed)}
    for line in metrics.read_jsonl(folder)
  ]


def counts(line):
  return {
    name.removeprefix(_COUNTS): value
    for name, value in line.items()
    if name.startswith(_COUNTS)
  }


@pytest.mark.slow
def test_one_round_changes_no_bit_and_is_counted(tmp_path):
  off = small_runs.run(options(tmp_path, "off"))
  one = DynamicSampling(max_rounds=1)
  on = small_runs.run(options(tmp_path, "on", dynamic_sampling=one))
  assert small_runs.bits(off) == small_runs.bits(on)
  for plain, counted in zip(lines(off), lines(on), strict=True):
    told = counts(counted)
    assert not counts(plain)
    assert plain == {
      k: v for k, v in counted.items() if not k.startswith(_COUNTS)
    }
    if told:
      assert (told["rounds"], told["groups"], told["dropped"]) == (1, 4, 0)
      assert 0 < told["equal"] == told["filled"] < 4


def whole(tmp_path):
  folder = small_runs.run(options(tmp_path, "whole", dynamic_sampling=ROUNDS))
  return folder, small_runs.bits(folder), lines(folder)


@pytest.mark.slow
def test_further_rounds_bring_groups_that_differ(tmp_path, paid):
  folder, _, told = whole(tmp_path)
  assert len(told) == 3
  for update, line in enumerate(told[1:]):
    found = counts(line)
    assert found["rounds"] > 1
    assert found["groups"] - found["dropped"] == 4
    assert line["rollout/episodes"] == 2 * found["groups"]
    books = [
      journal.read(journal.path_of(folder / "journal", update, 0, round_))
      for round_ in range(int(found["rounds"]))
    ]
    groups = {}
    for book in books:
      assert book.end is not None
      for one in book.trajectories.values():
        groups.setdefault(one.task.uid, []).append(one.total_reward)
    # No task twice, no uid twice, and what is counted is what was played.
    assert len(groups) == found["groups"]
    assert sum(len(b.trajectories) for b in books) == 2 * len(groups)
    equal = [len(set(rewards)) == 1 for rewards in groups.values()]
    assert sum(equal) == found["equal"]
    assert found["filled"] == max(0, 4 - (len(groups) - sum(equal)))
  # Each episode was begun once, the two evaluations of two episodes aside.
  episodes = sum(2 * counts(line)["groups"] for line in told[1:])
  assert len(paid) == episodes + 4


class Killed(BaseException):
  pass


@pytest.mark.slow
def test_a_run_killed_among_rounds_ends_with_the_same_bits(
  tmp_path, monkeypatch, paid
):
  expected = whole(tmp_path)[1:], len(paid)
  for place, count, again in (
    # Between two rounds nothing is played twice.
    ("rollout: finished", 1, 0),
    ("rollout: finished", 2, 0),
    # Within a round its episodes are played to the same bits.
    ("rollout: an episode", 10, 2),
  ):
    paid.clear()
    name = f"{place[-7:]}{count}"
    folder = killed_at(tmp_path, name, monkeypatch, place, count)
    # The evaluation of the start comes again.
    begun = len(paid) - again - 2
    assert ((small_runs.bits(folder), lines(folder)), begun) == expected


def killed_at(tmp_path, name, monkeypatch, place, count):
  """The folder of a run that was killed at a place, and then went on."""
  killed = options(tmp_path, name, dynamic_sampling=ROUNDS)
  left = [count]

  def passed(name):
    left[0] -= name == place
    if not left[0]:
      left[0] = -1
      raise Killed

  monkeypatch.setattr(kill_points, "passed", passed)
  with pytest.raises(Killed):
    small_runs.run(killed)
  return small_runs.run(killed)


def test_too_few_groups_that_differ_stop_the_run(tmp_path, monkeypatch):
  step = household.HouseholdEnv.step
  monkeypatch.setattr(
    household.HouseholdEnv, "step",
    lambda self, text: step(self, text)._replace(reward=0.5),
  )  # fmt: skip
  short = DynamicSampling(max_rounds=2, min_groups=3)
  with pytest.raises(
    RuntimeError,
    match=r"update 0: rewards differ in 0 of 8 groups of 2 rounds, "
    r"dynamic_sampling\.min_groups=3: raise dynamic_sampling\.max_rounds",
  ):
    small_runs.run(options(tmp_path, "short", dynamic_sampling=short))


@pytest.mark.parametrize("name", ["steppo", "ppo", "vetta", "reinforce_pp"])
def test_a_row_that_compares_no_group_is_refused(tmp_path, name):
  made = options(tmp_path, "refused", dynamic_sampling=ROUNDS)
  row = config.AlgorithmConfig(name=name)
  made = dataclasses.replace(made, algorithm=row)
  with pytest.raises(
    ValueError,
    match=rf"algorithm\.name={name} learns from single episodes: leave it out",
  ):
    train.train(
      made, run_folder.open_folder(made, "test", "test"),
      on_update=lambda *_: None, on_episode=lambda _: None,
    )  # fmt: skip


def test_groups_of_one_are_refused(tmp_path):
  made = options(tmp_path, "refused", dynamic_sampling=ROUNDS)
  made = dataclasses.replace(made, group_size=1)
  with pytest.raises(ValueError, match="set group_size above 1"):
    small_runs.run(made)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"max_rounds": 0}, "max_rounds=0 must be at least 1"),
    ({"max_rounds": 2, "min_groups": 0}, "min_groups=0 must be at least 1"),
    ({"min_groups": 2}, r"set dynamic_sampling\.max_rounds too"),
  ],
)
def test_options_that_do_not_fit_are_refused(given, message):
  with pytest.raises(ValueError, match=message):
    DynamicSampling(**given)


def test_more_groups_than_a_batch_holds_are_refused(tmp_path):
  made = options(
    tmp_path, "refused",
    dynamic_sampling=DynamicSampling(max_rounds=2, min_groups=5),
  )  # fmt: skip
  with pytest.raises(ValueError, match="min_groups=5 is above tasks_per_upd"):
    made.check_training()


@given(st.lists(st.booleans(), max_size=20), st.integers(1, 8))
def test_the_first_groups_that_differ_are_chosen_then_the_first_others(
  unequal, wanted
):
  chosen = dynamic_sampling.choose(unequal, wanted)
  assert chosen == sorted(chosen)
  assert len(chosen) == min(wanted, len(unequal))
  differing = [g for g, differs in enumerate(unequal) if differs]
  others = [g for g, differs in enumerate(unequal) if not differs]
  kept = differing[:wanted]
  assert [g for g in chosen if unequal[g]] == kept
  assert [g for g in chosen if not unequal[g]] == others[: wanted - len(kept)]


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 30))
def test_further_tasks_follow_from_seed_update_and_round(seed, update, round_):
  tasks = base.resolve("recommend", {"size": "tiny"}, {}).tasks.make()
  draw = lambda **changes: [
    task.uid
    for task in dynamic_sampling.fresh_tasks(
      tasks, 5,
      **{"seed": seed, "update": update, "round_": round_, "seen": ()}
      | changes,
    )
  ]  # fmt: skip
  found = draw()
  assert found == draw()
  assert draw(seen=found[:2]) == found[2:]
  for changes in ({"round_": round_ + 1}, {"update": update + 1}):
    assert found != draw(**changes)
