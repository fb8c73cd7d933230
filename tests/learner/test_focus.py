"""ActFocus: what thoughts and actions weigh in the loss of whole updates."""

import dataclasses
import functools

import jax
import learner_runs
import neighbour_loops
import numpy as np
import pytest
import tpu_tools
import whole_updates
import worlds
from marks import some

from steppo_jax.algorithms import options
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import credit, learner
from steppo_jax.learner import update as update_lib
from steppo_jax.models import mesh, transformer
from steppo_jax.packing import options as packing_options
from steppo_jax.packing import rows as packing

hlo = tpu_tools.load("hlo")
NAMES = ("actfocus_grpo", "actfocus_ppo")


def row_of(name, **changes):
  return dataclasses.replace(algorithms_table.get(name), **changes)


@functools.cache
def energies():
  """[M, R, T] of a reference, by a forward pass of plain logits."""
  tokens = whole_updates.batch(True).tokens
  policy = worlds.policy(1)
  parts = whole_updates.parts_of(row_of("grpo"))
  each = []
  for part in range(tokens.tokens.shape[0]):
    rows = jax.tree.map(lambda x, part=part: x[part], tokens)
    hidden = transformer.apply(
      worlds.model(), policy, rows.tokens, rows.positions, parts.attend(rows)
    )
    logits = np.asarray(hidden @ policy["embed"]["embedding"].T, np.float64)
    energy = -np.log(np.exp(logits).sum(-1))
    each.append(np.take_along_axis(energy, np.asarray(rows.parent), axis=1))
  return np.stack(each)


def test_the_weights_are_those_of_the_reference_and_the_thoughts():
  row = row_of("actfocus_grpo")
  parts = whole_updates.parts_of(row)
  batch = whole_updates.batch(True)
  found = jax.jit(functools.partial(credit.assign, parts))(
    whole_updates.start(parts), worlds.policy(1), batch, None
  )
  sampled = np.asarray(batch.tokens.step_ids) > 0
  thought = np.asarray(batch.tokens.reasoning)
  assert 20 < thought.sum() < sampled.sum() / 2
  assert not (thought & ~sampled).any()
  want = neighbour_loops.focus_weight(
    energies(), thought, sampled & ~thought, 0.1, 0.5
  )
  for m, weight in enumerate(np.asarray(found.weight)):
    # The weighted mean over a mini-batch as a mean of weighted tokens.
    mean = want[m].sum() / sampled[m].sum()
    np.testing.assert_allclose(weight, want[m] / mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    found.metrics["reference/focus_weight"][0], want.sum(), rtol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", some("actfocus_grpo", slow=NAMES))
def test_without_a_difference_it_is_the_base_row_to_the_bit(name):
  base = row_of(name, focus_alpha=None, focus_beta=0.0)
  plain, told = whole_updates.updated(base)
  row = row_of(name, focus_alpha=1.0, focus_beta=0.0)
  same, found = whole_updates.updated(row, reference=worlds.policy(1))
  jax.tree.map(
    np.testing.assert_array_equal,
    (plain.policy, plain.critic, told["policy/policy_loss"]),
    (same.policy, same.critic, found["policy/policy_loss"]),
  )
  row = row_of(name)
  other, _ = whole_updates.updated(row, reference=worlds.policy(1))
  assert whole_updates.distance(plain.policy, other.policy) > 1e-4


@pytest.mark.slow
def test_where_the_model_is_split_no_loop_gathers_the_table():
  model = dataclasses.replace(worlds.model(), vocab_size=8192)
  spec_on = lambda devices: learner.make_spec(
    model, row_of("actfocus_grpo"), learner_runs.CONFIG, devices,
    num_updates=4, seed=0, temperature=0.8,
  )  # fmt: skip
  rows = jax.tree.map(lambda x: x[0], whole_updates.batch(True).tokens)
  policy = transformer.init(model, jax.random.key(0))
  want = jax.jit(spec_on(mesh.make_mesh(1)).logp_and_energy)(policy, rows)
  split = mesh.make_model_mesh(data=1, fsdp=8, tensor=1)
  given = mesh.put(
    (policy, rows), (mesh.placements(split, policy), mesh.by_row(split, 0))
  )
  program = jax.jit(spec_on(split).logp_and_energy).lower(*given).compile()
  for x, y in zip(program(*given), want, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
  # A device's part of the table is larger than any matrix of a layer.
  found = hlo.Program(program.as_text()).collectives()
  part = 4 * 8192 * model.width / 8
  assert any(x.bytes >= part for x in found)
  assert not [x for x in found if x.depth and x.bytes >= part]


def test_without_actions_only_thoughts_are_left():
  # Weights of thoughts alone are all alike: their mean is 1.
  row = row_of("actfocus_grpo")
  parts = whole_updates.parts_of(row)
  batch = whole_updates.batch(True)
  all_thoughts = batch._replace(
    tokens=batch.tokens.replace(reasoning=batch.tokens.step_ids > 0)
  )
  found = jax.jit(functools.partial(credit.assign, parts))(
    whole_updates.start(parts), worlds.policy(1), all_thoughts, None
  )
  sampled = np.asarray(batch.tokens.step_ids) > 0
  np.testing.assert_allclose(found.weight, sampled, rtol=1e-6)


def test_what_is_missing_is_named_before_anything_compiles():
  row = row_of("actfocus_grpo")
  parts = whole_updates.parts_of(row)
  start = whole_updates.start(parts)
  with pytest.raises(ValueError, match=r"needs reasoning, .*reasoning=True"):
    update_lib.update(
      parts, start, worlds.policy(1), whole_updates.batch(False)
    )
  with pytest.raises(ValueError, match="needs reference, which"):
    update_lib.update(parts, start, None, whole_updates.batch(True))
  first, *others = worlds.trajectories(6, samples=2)
  steps = (
    dataclasses.replace(first.steps[0], reasoning_mask=None), *first.steps[1:]
  )  # fmt: skip
  config = packing_options.PackingConfig(row_length=worlds.CONTEXT)
  pack = functools.partial(
    packing.pack, part=[0] * 12, config=config, num_parts=1, rows_multiple=8,
    pad_id=0,
  )  # fmt: skip
  old = [dataclasses.replace(first, steps=steps), *others]
  assert pack(old).tokens.reasoning is None
  with pytest.raises(ValueError, match=r"step 0 of .* has no reasoning_mask"):
    pack(old, reasoning=True)
  short = dataclasses.replace(first.steps[0], reasoning_mask=np.zeros(99, bool))
  wrong = dataclasses.replace(first, steps=(short, *first.steps[1:]))
  with pytest.raises(ValueError, match="reasoning_mask has 99 entries for"):
    pack([wrong, *others], reasoning=True)


def test_any_row_takes_the_weights_as_an_option():
  config = options.AlgorithmConfig(
    name="gspo", focus_alpha=0.5, focus_beta=0.0, kl_coef=0.0
  )
  assert config.row().wants == {"group", "reference", "reasoning"}
  assert row_of("gspo", kl_coef=0.0).wants == {"group"}
  for options_, message in (
    ({"focus_beta": 0.5}, "focus_beta=0.5 is not read without focus_alpha"),
    ({"focus_alpha": -1.0}, "must be at least 0"),
  ):
    with pytest.raises(ValueError, match=message):
      options.AlgorithmConfig(name="grpo", **options_).row()


def test_the_batch_holds_thoughts_only_where_a_row_asks():
  assert learner_runs.packed().tokens.reasoning is None
