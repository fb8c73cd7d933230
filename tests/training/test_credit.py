"""Credit of a recorded update: what the file says is what the learner used."""

import collections
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import small_runs

from steppo_jax import __main__
from steppo_jax.algorithms import objective
from steppo_jax.learner import learner
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.rollout import journal, pool_entries
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.storage import credit as credit_files
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics
from steppo_jax.training import config, credit, train

_UPDATES = 3


def _options(folder, name, **changes):
  """A run of 100 episodes in which one optimizer step makes an update."""
  groups, clip = name in ("grpo", "gigpo"), 1e-2 if name == "steppo" else 2e-2
  made = small_runs.small_config(
    folder,
    algorithm=config.AlgorithmConfig(
      name=name, clip_low=clip, clip_high=clip, kl_coef=0.0
    ),
    num_updates=_UPDATES,
    tasks_per_update=9 if groups else 34,
    group_size=4 if groups else 1,
    keep_journals=_UPDATES,
    keep_checkpoints=_UPDATES,
    record_credit=1,
    learner=LearnerConfig(
      num_minibatches=1, microbatch_rows=2, critic_warmup=0, critic_epochs=1,
      actor_epochs=1, learning_rate=1e-2, warmup_steps=0,
    ),
    evaluation=config.EvalConfig(every=99, episodes=0),
  )  # fmt: skip
  return dataclasses.replace(made, **changes)


@pytest.fixture
def overheard(monkeypatch):
  """What the losses of the learner were called with, update by update.

  The loss itself tells, while the compiled update runs. Nothing of
  `learner.explain` or `training.credit` has a part in it.
  """
  calls = collections.defaultdict(list)

  def heard(name, original, arrays):
    def called(*args, **kwargs):
      note = lambda *found: calls[name].append(list(map(np.array, found)))
      jax.debug.callback(note, *arrays(*args, **kwargs))
      return original(*args, **kwargs)

    monkeypatch.setattr(objective, name, called)

  heard(
    "policy_loss", objective.policy_loss,
    lambda row, advantage, logp, entropy, batch, table, **_: (
      advantage, logp, entropy, batch.step_ids, batch.behaviour_logp,
      table.reward,
    ),
  )  # fmt: skip
  heard(
    "value_loss_terms", objective.value_loss_terms,
    lambda row, target, value, old, batch, table, *, boundary_local, here, **_:
      (target, old, boundary_local, here, batch.step_ids, batch.parent),
  )  # fmt: skip
  learner._shared.cache_clear()
  yield calls
  learner._shared.cache_clear()


def _train(options, calls):
  """Trains; returns the folder, and what was overheard in each update."""
  folder = run_folder.open_folder(options, "test", "test")
  updates = []

  def on_update(done, found):
    jax.effects_barrier()
    updates.append({name: list(one) for name, one in calls.items()})
    calls.clear()

  train.train(options, folder, on_update=on_update, on_episode=lambda _: None)
  return folder, updates[1:]  # The first call is of the evaluation before.


def _check(found, update, row, trajectories):
  """Compares a file with what the losses were called with."""
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)
  steps = [s for uid in found.episodes for s in trajectories[uid].steps]
  assert len(steps) == found.first_step[-1] > len(found.episodes) > 0
  by_step = {}
  for advantage, logp, entropy, ids, behaviour, reward in update["policy_loss"]:
    for k in np.unique(ids[ids > 0]):
      here = ids == k
      # Numbers of steps as the journal has them, in the order of the file.
      close(behaviour[here], steps[k - 1].behaviour_logp)
      mine = advantage[here] if advantage.ndim == 2 else advantage[k]
      by_step[k] = logp[here], entropy[here], behaviour[here], mine
      assert reward[k] == np.float32(steps[k - 1].reward)
  assert set(by_step) == {
    k for k, step in enumerate(steps, 1) if len(step.response_ids)
  }
  for k, (logp, entropy, behaviour, advantage) in by_step.items():
    tokens = slice(*found.first_token[k - 1 : k + 1])
    ratio = np.exp(logp - behaviour)
    close(found.logp[tokens], logp)
    close(found.behaviour_logp[tokens], behaviour)
    close(found.entropy[tokens], entropy)
    close(found.ratio_t[tokens], ratio)
    close(found.ratio[k - 1], np.exp(np.mean(logp - behaviour)))
    close(found.advantage[k - 1], np.mean(advantage))
    close(found.advantage_t[tokens], advantage)
    used = found.ratio[k - 1] if row.ratio == "step" else ratio
    edge = np.where(advantage > 0, 1 + row.clip_high, 1 - row.clip_low)
    clipped = (used - edge) * np.sign(advantage) > 0
    if np.min(np.abs(used - edge)) > 1e-6:
      np.testing.assert_array_equal(found.clipped[tokens], clipped)
  close(found.reward, [step.reward for step in steps])
  assert np.isnan(found.teacher_gap).all()


def _check_critic(found, update, row):
  """Values and targets as the critic's loss had them, and TD errors."""
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)
  value = np.full(len(found.value) + 1, np.nan)
  target, first_raw = value.copy(), value.copy()
  for target_k, old, boundary, here, ids, parent in update["value_loss_terms"]:
    if row.critic == "step":
      at = np.flatnonzero(here)
      value[at] = old.reshape(-1)[boundary[at]]
      target[at] = target_k[at]
      first_raw[at] = target[at] - value[at]
      continue
    for k in np.unique(ids[ids > 0]):  # One number a token, here in order.
      rows, columns = np.nonzero(ids == k)
      value[k] = old[rows[0], parent[rows[0], columns[0]]]
      target[k] = np.mean(target_k[rows, columns])
      first_raw[k] = target_k[rows[0], columns[0]] - value[k]
  close(found.value, value[1:])
  close(found.target, target[1:])
  # The raw advantage is target - value, and A = delta + discount lambda A'.
  # Those of the tokens of a step add up to as much, undiscounted as they are.
  raw = np.append(first_raw[1:], 0.0)
  for first, end in zip(found.first_step, found.first_step[1:], strict=False):
    later = raw[first + 1 : end + 1].copy()
    later[-1] = 0.0
    delta = raw[first:end] - row.discount * row.lambda_ * later
    close(found.delta[first:end], delta)


def _journal(folder, update):
  path = journal.path_of(folder / run_folder.JOURNALS_NAME, update, 0)
  return journal.read(path).trajectories


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "staleness"),
  [("steppo", 2), ("steppo", 0), ("ppo", 0), ("grpo", 0), ("gigpo", 2)],
)
def test_a_file_of_credit_is_what_the_update_used(
  tmp_path, overheard, name, staleness
):
  options = _options(tmp_path, name)
  options = dataclasses.replace(
    options, rollout=dataclasses.replace(options.rollout, staleness=staleness)
  )
  folder, heard = _train(options, overheard)
  row, count, clipped = options.algorithm.row(), 0, 0
  for update, losses in enumerate(heard):
    found = credit_files.read(credit_files.path_of(folder, update))
    trajectories = _journal(folder, update)
    assert found.update == found.checkpoint_update == update
    assert found.algorithm == name
    _check(found, losses, row, trajectories)
    if row.critic:
      _check_critic(found, losses, row)
    else:
      assert np.isnan([found.value, found.delta, found.target]).all()
    count, clipped = count + len(found.episodes), clipped + found.clipped.sum()
  assert count >= 100
  # Off-policy the clip binds: that it is told where is part of the claim.
  assert not staleness or clipped > 0
  # Computed afterwards it is the same, whatever the batches' shapes are.
  for update in range(_UPDATES):
    path = credit_files.path_of(folder, update)
    recorded = credit_files.read(path)
    [again] = credit.compute(folder, [update])
    _assert_close(recorded, again)


@pytest.fixture(scope="module")
def run_folder_of(tmp_path_factory):
  """A run that recorded everything, and was stopped and gone on with."""
  made = small_runs.small_config(
    tmp_path_factory.mktemp("credit"),
    keep_journals=9, keep_checkpoints=3, record_credit=1,
    record_every=1, record_format="jsonl",
  )  # fmt: skip
  small_runs.run(made, stop_after=2)
  return small_runs.run(made)


@pytest.fixture
def copied(run_folder_of, tmp_path):
  """The same with no credit, to be computed."""
  folder = tmp_path / "run"
  shutil.copytree(run_folder_of, folder)
  shutil.rmtree(folder / credit_files.FOLDER_NAME)
  return folder


def _read(folder, update):
  return credit_files.read(credit_files.path_of(folder, update))


def _assert_close(a, b):
  for field in dataclasses.fields(a):
    x, y = getattr(a, field.name), getattr(b, field.name)
    if isinstance(x, np.ndarray):
      np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)
    elif field.name != "checkpoint_update":
      assert x == y


def test_means_over_a_file_are_the_metrics_of_its_update(run_folder_of):
  """In update 0 only the critic learns: the policy of all its steps is one."""
  found, line = _read(run_folder_of, 0), metrics.read_jsonl(run_folder_of)[1]
  acted = ~np.isnan(found.ratio)
  first = found.first_token[:-1][acted]
  for name, values in {
    "batch/reward": found.reward,
    "critic/value_target": found.target,
    "policy/entropy": found.entropy[~np.isnan(found.entropy)],
    "policy/advantage": found.advantage[acted],
    "policy/advantage_abs": np.abs(found.advantage[acted]),
    "policy/ratio": found.ratio[acted],
    "policy/clip_fraction": found.clipped[first],
    "policy/sampler_gap": np.abs(found.logp - found.behaviour_logp),
  }.items():
    assert np.mean(values) == pytest.approx(line[name], abs=1e-5), name
  error = np.square(found.target - found.value).sum()
  spread = np.square(found.target - found.target.mean()).sum()
  unexplained = line["critic/unexplained_variance"]
  assert error / spread == pytest.approx(unexplained, rel=1e-4)
  # The raw advantages, of which TD errors are the differences, are whitened.
  raw = (found.target - found.value)[acted]
  whitened = (raw - raw.mean()) / raw.std(ddof=1)
  np.testing.assert_allclose(found.advantage[acted], whitened, atol=1e-3)


def test_credit_computed_later_is_what_was_recorded(run_folder_of, copied):
  assert credit_files.updates_of(run_folder_of) == [0, 1, 2]
  done = []
  found = list(credit.compute(copied, [2, 0, 1], lambda *x: done.append(x)))
  assert [one.update for one in found] == [2, 0, 1]
  assert done == [(i, 13) for i in range(1, 14)]
  for one in found:
    assert one.checkpoint_update == one.update
    _assert_close(one, _read(run_folder_of, one.update))
    _assert_close(one, _read(copied, one.update))


def test_recorded_episodes_serve_where_journals_are_gone(run_folder_of, copied):
  shutil.rmtree(copied / run_folder.JOURNALS_NAME)
  [found] = credit.compute(copied, [1])
  _assert_close(found, _read(run_folder_of, 1))


@pytest.mark.slow
def test_what_was_excluded_before_its_update_has_no_credit(copied):
  """The journal holds it as it was played; the pool says that it failed."""
  [path] = (copied / run_folder.JOURNALS_NAME).glob("1-*.journal")
  held = journal.read(path).trajectories
  uid = next(iter(held))
  with pool_lib.Pool(copied / run_folder.POOL_NAME) as pool:
    pool.issue("1-0", held[uid].task, [(uid, (1,), 0)])
    pool.start("agent", 60)
    pool.finish(held[uid], "agent")
    pool_entries.exclude(pool, [uid])
  [found] = credit.compute(copied, [1])
  assert sorted([*found.episodes, uid]) == sorted(held)


def test_the_nearest_checkpoint_is_taken_and_named(copied, capsys, caplog):
  """Update 2's own is damaged, and that before it is gone: 3 comes next."""
  shutil.rmtree(copied / run_folder.CHECKPOINTS_NAME / "1")
  manifest = copied / run_folder.CHECKPOINTS_NAME / "2" / "manifest.json"
  manifest.write_text("{}")
  assert __main__.main(["credit", str(copied), "--update", "2", "--json"]) == 0
  assert _read(copied, 2).checkpoint_update == 3
  out, err = capsys.readouterr()
  lines = [json.loads(line) for line in out.splitlines()]
  assert lines == [{"done": i, "total": 5} for i in range(1, 6)]
  assert "with the weights of 3 updates" in err
  assert "the next nearest is taken" in caplog.text


def _forget_episodes(folder):
  shutil.rmtree(folder / "data")
  for path in (folder / run_folder.JOURNALS_NAME).glob("1-*.journal"):
    path.unlink()


def _cut_journal(folder):
  path = folder / run_folder.JOURNALS_NAME / "1-0.journal"
  path.write_bytes(path.read_bytes()[:-10])


def _break_options(folder):
  path = folder / run_folder.CONFIG_NAME
  told = json.loads(path.read_text())
  path.write_text(json.dumps(told | {"learner": {"from_tomorrow": 1}}))


@pytest.mark.parametrize(
  ("spoil", "update", "told"),
  [
    (_forget_episodes, 1, "journals of updates 0, 2.*keep_journals=3"),
    (_cut_journal, 1, "is not finished"),
    (lambda _: None, 3, "update 3 is none of this run"),
    (lambda _: None, -1, "numbered from 0 to 2"),
    (lambda f: (f / "config.json").unlink(), 0, "config.json is missing"),
    (_break_options, 0, "there is no option learner.from_tomorrow"),
    (lambda f: (f / "config.json").write_text("{"), 0, "does not hold"),
  ],
  ids=["forgotten", "cut", "late", "negative", "no-run", "newer", "broken"],
)
def test_what_cannot_be_computed_says_why(copied, capsys, spoil, update, told):
  spoil(copied)
  with pytest.raises(ValueError, match=told):
    list(credit.compute(copied, [update]))
  assert not (copied / credit_files.FOLDER_NAME).exists()


def test_options_come_back_from_the_folder_of_a_run():
  made = config.RunConfig(
    weights="w", algorithm=config.AlgorithmConfig("steppo", tau=(1.0, 2.0)),
    env=config.EnvConfig(options=("a=1",)),
  )  # fmt: skip
  text = json.dumps(run_folder.options_of(made))
  assert config.from_json(config.RunConfig, text) == made
  with pytest.raises(ValueError, match="missing"):
    config.from_json(config.RunConfig, "{}")
