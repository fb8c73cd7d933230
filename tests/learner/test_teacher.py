"""What a teacher changes: its gap is exact, its weight falls to nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import learner_runs
import numpy as np
import peer_episodes
import pytest
import small_runs
import whole_updates
import worlds
from marks import some

from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import credit, spec
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.models import mesh, transformer
from steppo_jax.models.formats import weights
from steppo_jax.ops import segments
from steppo_jax.packing import options as packing_options
from steppo_jax.storage import metrics
from steppo_jax.training import config

packed, WON = peer_episodes.packed, peer_episodes.WON

TAUGHT = ("serl", "stepopsd", "agentopsd")
# One weight a token that no band clips: the advantage tells the gap.
PLAIN = {"low": 0.0, "high": 1e9, "mix": 1.0}


def row(name, *, mix_updates=0, **options):
  made = dataclasses.replace(
    algorithms_table.get(name), kl_coef=0.0, mix_updates=mix_updates
  )
  options = {**dict(made.options), **options}
  return dataclasses.replace(made, options=tuple(options.items()))


@functools.cache
def assigner(algorithm, layout="packed", won=WON, devices=1):
  """A compiled function from the update's number to the credit of a batch."""
  made, rows, _ = packed(layout, won)
  parts = whole_updates.parts_of(algorithm)._replace(
    mesh=mesh.make_mesh(devices)
  )
  batch = learner_state.put_batch(made, parts.mesh, rows)

  @jax.jit
  def run(update):
    state = whole_updates.start(parts).replace(update=update)
    found = credit.assign(parts, state, None, batch, None)
    return found.advantages.advantage, found.metrics

  return run


def assigned(algorithm, layout="packed", won=WON, devices=1):
  """Advantages and metrics of a batch under the policy as its own teacher."""
  return jax.device_get(assigner(algorithm, layout, won, devices)(0))


def grpo(like, layout="packed"):
  """GRPO's advantages on the clock of some others."""
  plain, _ = assigned(learner_runs.row("grpo"), layout)
  if like.ndim == 1:
    return plain
  ids = packed(layout)[0].tokens.step_ids.reshape(like.shape)
  return np.asarray(segments.to_tokens(plain, ids))


def per_step(values, layout):
  """Numbers of the action tokens of each step, in order."""
  ids = packed(layout)[0].tokens.step_ids.reshape(values.shape)
  return {k: values[ids == k] for k in np.unique(ids) if k}


def gaps(layout, devices=1):
  """What the update takes for the gap, told by the advantages it makes."""
  shaped, _ = assigned(row("serl", **PLAIN), layout, WON, devices)
  plain = grpo(shaped, layout)
  acted = plain != 0
  ids = packed(layout)[0].tokens.step_ids.reshape(shaped.shape)
  np.testing.assert_array_equal(acted, ids > 0)
  ratio = np.divide(shaped, plain, where=acted, out=np.ones_like(shaped))
  return per_step(np.sign(plain) * np.log(ratio), layout)


@jax.jit
def logp_by_hand(ids):
  """[n - 1] log-probability of each token after those before it."""
  attend = functools.partial(jax.nn.dot_product_attention, is_causal=True)
  policy = worlds.policy()
  hidden = transformer.apply(
    worlds.model(), policy, ids[None], jnp.arange(len(ids))[None], attend
  )
  logits = hidden[0] @ policy["embed"]["embedding"].T
  logp = jax.nn.log_softmax(logits)[:-1]
  return jnp.take_along_axis(logp, ids[1:, None], axis=1)[:, 0]


def of_response(prompt, response):
  """Log-probs of a response, by a plain forward pass padded to one length."""
  ids = np.concatenate([prompt, response]).astype(np.int32)
  padded = np.pad(ids, (0, 3 * worlds.CONTEXT - len(ids)))
  return np.asarray(logp_by_hand(padded))[len(prompt) - 1 : len(ids) - 1]


@pytest.mark.slow
def test_the_gap_is_that_of_a_plain_forward_pass():
  known = peer_episodes.contexts()
  found, compared = gaps("packed"), 0
  for number, (step, whose) in peer_episodes.steps_of(
    packed("packed")[0]
  ).items():
    if not len(step.response_ids):
      continue
    context = known[whose.uid]
    if context is None:
      np.testing.assert_array_equal(found[number], 0)
      continue
    prompt = np.concatenate([context, step.prompt_ids])
    expected = of_response(prompt, step.response_ids)
    expected = expected - of_response(step.prompt_ids, step.response_ids)
    np.testing.assert_allclose(found[number], expected, atol=1e-5, rtol=1e-5)
    compared += np.abs(expected).max() > 0.01
  assert compared > 20


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layout", "devices"), some(("packed", 8), slow=[("rows", 1), ("tree", 1)])
)
def test_layouts_and_devices_agree_on_the_gap(layout, devices):
  expected, found = gaps("packed"), gaps(layout, devices)
  assert found.keys() == expected.keys()
  for number, gap in expected.items():
    np.testing.assert_allclose(found[number], gap, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_share_of_steps_with_a_peer_is_reported():
  _, found = assigned(row("serl", **PLAIN), "packed")
  covered = packed("packed")[1].covered.sum()
  live = packed("packed")[0].table.live.sum()
  assert found["teacher/covered"] == (covered, live)
  total = np.concatenate([*gaps("packed").values()]).sum()
  heard = (packed("packed")[1].tokens.step_ids > 0).sum()
  np.testing.assert_allclose(found["teacher/gap"], (total, heard), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", some("serl", slow=TAUGHT))
def test_without_a_peer_the_advantage_is_grpos_to_the_bit(name):
  shaped, found = assigned(row(name), won=())
  live = packed("packed")[0].table.live.sum()
  assert found["teacher/covered"] == (0, live)
  np.testing.assert_array_equal(shaped, grpo(shaped))
  other, _ = assigned(row(name))
  assert not np.array_equal(other, shaped)


@pytest.mark.slow
def test_the_teachers_weight_falls_to_nothing_over_its_updates():
  run = assigner(row("serl", mix_updates=50))
  # Half of 0.5 is left at update 25; from 50 on all is GRPO's, to the bit.
  for update, mix in ((0, 0.5), (25, 0.25), (50, 0.0), (60, 0.0)):
    shaped, found = jax.device_get(run(update))
    np.testing.assert_allclose(found["teacher/mix"], (mix, 1), rtol=1e-6)
    heard = found["teacher/gap"][1]
    if not mix:
      assert heard == found["teacher/mix"][0] == 0
      np.testing.assert_array_equal(shaped, grpo(shaped))
      continue
    assert heard > 100
    constant, _ = assigned(row("serl", mix=mix))
    np.testing.assert_allclose(shaped, constant, rtol=1e-6)
    assert np.abs(shaped - grpo(shaped)).max() > 0.01
  assert run._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", some("peer", slow=["file"]))
def test_nobody_is_asked_once_the_teachers_weight_is_gone(kind, monkeypatch):
  asked, logp = [], spec.UpdateSpec.logp

  def counted(self, policy, rows):
    jax.debug.callback(lambda: asked.append(1))
    return logp(self, policy, rows)

  monkeypatch.setattr(spec.UpdateSpec, "logp", counted)
  made, rows, _ = packed("packed")
  parts = whole_updates.parts_of(row("stepopsd", mix_updates=50))
  batch = learner_state.put_batch(
    made, parts.mesh, rows if kind == "peer" else None
  )
  teacher = worlds.policy(2) if kind == "file" else None

  @jax.jit
  def run(update):
    state = whole_updates.start(parts).replace(update=update)
    return credit.assign(parts, state, None, batch, teacher).advantages

  microbatches = lambda found: sum(-(-n // 8) for n in found.rows_used)
  own = microbatches(made)
  for update, more in ((49, microbatches(batch.teacher or made)), (50, 0)):
    asked.clear()
    shaped = run(update).advantage
    jax.effects_barrier()
    assert len(asked) == own + more
    assert np.array_equal(shaped, grpo(shaped)) == (update == 50)


def test_the_rows_follow_the_published_schedules():
  falls = {name: algorithms_table.get(name).mix_updates for name in TAUGHT}
  assert falls == {"serl": 50, "stepopsd": 50, "agentopsd": 0}
  starts = [dict(algorithms_table.get(name).options)["mix"] for name in TAUGHT]
  assert starts == [0.5, 0.5, 0.5]
  lags = [algorithms_table.get(name).teacher_lag for name in TAUGHT]
  assert lags == [0, 10, 0]


def test_no_teacher_and_rows_of_half_a_microbatch_are_refused():
  made, rows, _ = packed("packed")
  parts = whole_updates.parts_of(row("serl"))
  batch = learner_state.put_batch(made, parts.mesh, rows)
  start = whole_updates.start(parts)
  tokens = jax.tree.map(lambda x: x[:, :3], batch.teacher.tokens)
  uneven = batch._replace(teacher=batch.teacher._replace(tokens=tokens))
  with pytest.raises(ValueError, match="3 rows of the teacher are not a multi"):
    update_lib.update(parts, start, None, uneven)
  alone = batch._replace(teacher=None)
  with pytest.raises(ValueError, match=r"needs teacher.*algorithm\.teacher"):
    update_lib.update(parts, start, None, alone)


SERL = config.AlgorithmConfig(
  name="serl", clip_low=0.2, clip_high=0.2, teacher="peer", mix_updates=2
)


def serl_run(folder, **changes):
  """Three updates of a policy that wins some tiny games."""
  options = small_runs.small_config(
    folder, tasks_per_update=3, group_size=4, algorithm=SERL,
    weights=str(small_runs.WARM),
    evaluation=config.EvalConfig(every=3, episodes=2),
    packing=packing_options.PackingConfig(row_length=256),
  )  # fmt: skip
  rollout = dataclasses.replace(options.rollout, max_steps=10, max_tokens=256)
  sampler = dataclasses.replace(options.sampler, prefill_lengths=(64,))
  return dataclasses.replace(
    options, rollout=rollout, sampler=sampler, **changes
  )


@pytest.fixture(scope="module")
def with_peers(tmp_path_factory):
  """A run that has ended: its options and its folder."""
  options = serl_run(tmp_path_factory.mktemp("peers"))
  return options, small_runs.run(options)


@pytest.mark.slow
def test_a_run_with_peers_trains_and_reports(with_peers):
  options, whole = with_peers
  lines = metrics.read_jsonl(whole / "metrics.jsonl")[1:]
  assert [line["teacher/mix"] for line in lines] == [0.5, 0.25, 0]
  assert all(0 <= line["teacher/covered"] <= 1 for line in lines)
  # Some groups have a winner besides; nothing is too long here.
  assert lines[0]["teacher/covered"] > 0.2
  assert lines[0]["teacher/gap"] != 0
  assert all(line["teacher/left_out"] == 0 for line in lines)
  assert lines[-1]["compiles/learner"] <= 1
  for name in ("policy/policy_loss", "policy/grad_norm", "policy/approx_kl"):
    assert all(np.isfinite(line[name]) for line in lines), name
  before, _ = weights.load_params(options.weights)
  after, _ = weights.load_params(whole / "policy.safetensors")
  assert whole_updates.distance(before, after) > 1e-4


@pytest.mark.slow
def test_a_group_without_a_winner_has_no_peer(tmp_path):
  options = small_runs.small_config(
    tmp_path, tasks_per_update=2, group_size=3, algorithm=SERL,
    learner=LearnerConfig(num_minibatches=1, critic_epochs=1),
  )  # fmt: skip
  folder = small_runs.run(options, stop_after=1)
  line = metrics.read_jsonl(folder / "metrics.jsonl")[1]
  assert line["rollout/success"] == line["teacher/covered"] == 0
  assert line["teacher/mix"] == 0.5
  assert np.isnan(line["teacher/gap"])  # the mean of none
  assert line["policy/stepped"] == 1


@pytest.mark.slow
def test_a_run_with_peers_resumes_to_the_bit(with_peers, tmp_path):
  options, whole = with_peers
  again = dataclasses.replace(options, run_dir=str(tmp_path / "again"))
  small_runs.run(again, stop_after=2)
  again = small_runs.run(again)
  assert small_runs.bits(whole) == small_runs.bits(again)
  old, new = (
    metrics.read_jsonl(run / "metrics.jsonl")[-1] for run in (whole, again)
  )
  assert old["teacher/covered"] == new["teacher/covered"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"algorithm": dataclasses.replace(SERL, teacher="pear")},
     r"algorithm\.teacher=pear is neither 'peer' nor a file of weights"),
    ({"algorithm": dataclasses.replace(SERL, teacher=None)},
     r"needs teacher.*algorithm\.teacher=peer"),
    ({"algorithm": dataclasses.replace(SERL, name="grpo")},
     r"mix_updates=2 is not read by estimator 'grpo'"),
    ({"algorithm": dataclasses.replace(SERL, name="grpo", mix_updates=None)},
     r"algorithm\.teacher=peer is not read by grpo"),
    ({"algorithm": dataclasses.replace(SERL, mix_updates=-1)},
     "mix_updates=-1 must be at least 0"),
    ({"group_size": 1}, "needs group.*set group_size above 1"),
  ],
)  # fmt: skip
def test_a_teacher_that_cannot_be_had_is_refused(changes, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    small_runs.run(serl_run(tmp_path, **changes))


def test_rows_of_a_teacher_shorter_than_its_students_are_refused():
  with pytest.raises(ValueError, match=r"teacher_length=8 is shorter than.*12"):
    packing_options.PackingConfig(row_length=12, teacher_length=8)


@pytest.mark.slow
def test_a_lagging_teacher_is_the_policy_of_some_updates_ago():
  made, rows, _ = packed("packed")
  lagging = row("stepopsd", mix=1.0, low=0.0, high=9.0)
  lagging = dataclasses.replace(lagging, teacher_lag=2)
  parts = whole_updates.parts_of(lagging)
  batch = learner_state.put_batch(made, parts.mesh, rows)
  run = jax.jit(functools.partial(update_lib.update, parts))
  state, old = whole_updates.start(parts), []
  for _ in range(3):
    old.append(state.policy)
    state, _ = run(state, None, batch)
    told = jax.device_get(state.teacher)
    # After two updates, and again after four, the teacher is of the moment.
    turn = state.policy if int(state.update) == 2 else None
    wanted = turn if turn is not None else (old[0] if len(old) < 2 else old[2])
    assert whole_updates.distance(told, wanted) == 0
  assert whole_updates.distance(old[0], old[2]) > 1e-4
  # What it says is read: with the policy of the moment the step is another.
  live = state.replace(teacher=state.policy)
  credit_of = jax.jit(
    lambda state: (
      credit.assign(
        parts, state, None, batch, state.teacher
      ).advantages.advantage
    )
  )
  gap = np.abs(credit_of(state) - credit_of(live)).max()
  assert gap > 1e-4
