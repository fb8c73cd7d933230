"""Adapters: nothing at first, alone in the optimizer, merged at the end."""

import dataclasses
import fnmatch
import functools
import pathlib

import jax
import jax.numpy as jnp
import learner_runs
import numpy as np
import pytest
import small_runs
import worlds

from steppo_jax import trees
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import learner, supervised
from steppo_jax.learner import options as learner_options
from steppo_jax.learner import state as learner_state
from steppo_jax.models import attend, heads, lora, mesh, transformer
from steppo_jax.models import options as models_options
from steppo_jax.models.formats import peft, weights
from steppo_jax.pretrained import policy
from steppo_jax.storage import metrics

CONFIG = models_options.LoraConfig(rank=2, alpha=6.0)


def with_adapters(seed=0, config=CONFIG, params=None):
  """A policy whose adapters do something."""
  policy = lora.add(params or worlds.policy(), config, jax.random.key(seed))
  flat = trees.flatten(policy)
  for number, path in enumerate(flat):
    if path.endswith("lora_b"):
      key = jax.random.key(100 + number)
      flat[path] = 0.3 * jax.random.normal(key, flat[path].shape)
  return trees.unflatten(flat)


def logits(params, model=None):
  model = model or worlds.model()
  ids = jnp.arange(3, 43)[None]
  positions = jnp.arange(40)[None]
  run = attend.over_rows(
    jnp.full((1, 40), 40), positions, block=64, implementation="xla", mesh=None
  )
  hidden = transformer.apply(model, params, ids, positions, run)
  return transformer.logits(model, params, hidden)


def test_fresh_adapters_change_nothing():
  policy = lora.add(worlds.policy(), CONFIG, jax.random.key(0))
  assert not lora.has(worlds.policy())
  assert lora.has(policy)
  plain = logits(worlds.policy())
  np.testing.assert_allclose(logits(policy), plain, atol=2e-5)


def test_a_layer_adds_the_scaled_product_of_its_adapter():
  # s = alpha / r = 6 / 2 = 3; x = (1, 2); x A = 1·2 + 2·1 = 4; B = (5, -1).
  params = {
    "kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]),
    "lora_a": jnp.array([[2.0], [1.0]]),
    "lora_b": jnp.array([[5.0, -1.0]]),
    "lora_scale": jnp.float32(3.0),
  }
  got = transformer.Linear(2).apply({"params": params}, jnp.array([[1.0, 2.0]]))
  np.testing.assert_allclose(got, [[1 + 60, 2 - 12]])


@pytest.mark.slow
def by_two_paths(x, kernel, a, b, scale):
  return x @ kernel + scale * ((x @ a) @ b)


def five(kind=jnp.float32):
  """x [6, 5], W [5, 4], A [5, 2], B [2, 4] and s."""
  shapes = (6, 5), (5, 4), (5, 2), (2, 4), ()
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return [
    jax.random.normal(key, shape, kind)
    for key, shape in zip(keys, shapes, strict=True)
  ]


@pytest.mark.parametrize("argument", range(5))
def test_a_product_has_the_derivatives_of_two_paths(argument):
  """Forwards, backwards and twice, in each argument alone and in all."""
  args = five()

  def of(function, x):
    given = [*args[:argument], x, *args[argument + 1 :]]
    return jnp.sum(jnp.sin(function(*given)))

  one, two = (
    functools.partial(of, function) for function in (lora.product, by_two_paths)
  )
  close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
  x, along = args[argument], jnp.ones_like(args[argument])
  close(one(x), two(x))
  close(jax.grad(one)(x), jax.grad(two)(x))
  close(*(jax.jvp(f, (x,), (along,))[1] for f in (one, two)))
  twice = lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2))(x)
  close(twice(one), twice(two))
  assert jax.grad(one)(x).dtype == x.dtype


def test_a_product_is_that_of_the_sampler_to_the_bit():
  # What a matrix in bfloat16 cannot hold the sampler does not have either.
  x, kernel, a, b, scale = five()
  narrow = lambda y: y.astype(jnp.bfloat16)
  tree = {"kernel": kernel, "lora_a": a, "lora_b": b, "lora_scale": scale}
  stacked = jax.tree.map(lambda x: x[None], {"layers": {"q": tree}})
  [merged] = lora.merge(stacked)["layers"]["q"]["kernel"]
  np.testing.assert_array_equal(
    lora.product(narrow(x), kernel, a, b, scale), narrow(x) @ narrow(merged)
  )


def test_merged_parameters_compute_the_same():
  policy = with_adapters()
  merged = lora.merge(policy)
  assert jax.tree.structure(merged) == jax.tree.structure(worlds.policy())
  gap = jnp.abs(logits(policy) - logits(worlds.policy())).max()
  assert gap > 0.5
  np.testing.assert_allclose(logits(merged), logits(policy), atol=5e-5)
  off = lora.off(policy)
  np.testing.assert_array_equal(logits(off), logits(worlds.policy()))
  same = lora.merge(worlds.policy())
  assert jax.tree.all(jax.tree.map(lambda x, y: x is y, same, worlds.policy()))


@pytest.mark.parametrize(
  "targets", [("layers/q/*", "layers/v/*"), ("*down/kernel",), ("layers/*",)]
)
def test_patterns_choose_matrices(targets):
  config = dataclasses.replace(CONFIG, targets=targets)
  flat = trees.flatten(lora.add(worlds.policy(), config, jax.random.key(0)))
  found = {p.removesuffix("lora_a") for p in flat if p.endswith("lora_a")}
  want = {
    p.removesuffix("kernel")
    for p in trees.flatten(worlds.policy())
    if p.endswith("kernel") and any(fnmatch.fnmatch(p, t) for t in targets)
  }
  assert found == want
  assert len(found) in (1, 2, 7)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: models_options.LoraConfig(rank=-1), r"lora\.rank=-1"),
    (lambda: models_options.LoraConfig(rank=1, alpha=0), r"lora\.alpha=0"),
    (lambda: with_adapters(config=dataclasses.replace(
      CONFIG, targets=("layers/qq/*",))), "'layers/qq/\\*' fits none of"),
    (lambda: with_adapters(config=dataclasses.replace(
      CONFIG, targets=("embed/*",))), "fits none of"),
    (lambda: with_adapters(params=with_adapters()), "have adapters already"),
  ],
)  # fmt: skip
def test_adapters_that_cannot_be_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def updated(policy, reference, *, kl_coef=0.5, config=CONFIG, model=None):
  """State before and after one update of GRPO with a KL term."""
  row = dataclasses.replace(
    algorithms_table.get("grpo"), kl_coef=kl_coef, clip_low=0.2, clip_high=0.2
  )
  options = dataclasses.replace(learner_runs.CONFIG, lora=config)
  one = mesh.make_mesh(1)
  made = learner.Learner(
    model or worlds.model(), row, options, one, num_updates=4, seed=0
  )
  state = made.init(policy)
  before = jax.device_get(state)
  batch = learner_state.put_batch(learner_runs.packed(), one)
  after, found = made.update(state, reference, batch)
  return before, jax.device_get(after), jax.device_get(found)


def test_an_update_moves_adapters_alone_and_keeps_state_for_them_alone():
  before, after, _ = updated(worlds.policy(), None)
  old, new = (trees.flatten(s.policy) for s in (before, after))
  moved = {p for p in old if not np.array_equal(old[p], new[p])}
  # A starts to move once B is no longer 0.
  assert moved == {p for p in old if p.endswith(("lora_a", "lora_b"))}
  adapters = sum(old[p].size for p in moved)
  floats = [
    x for x in jax.tree.leaves(after.policy_optimizer)
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]  # fmt: skip
  assert sum(x.size for x in floats) == 2 * adapters  # Adam's two moments
  for path, leaf in trees.flatten(worlds.policy()).items():
    np.testing.assert_array_equal(new[path], leaf)


@pytest.mark.slow
def test_the_reference_is_the_policy_with_its_adapters_off():
  policy = with_adapters()
  _, implied, found = updated(policy, None)
  _, given, same = updated(policy, worlds.policy())
  for x, y in zip(
    jax.tree.leaves(implied.policy), jax.tree.leaves(given.policy), strict=True
  ):
    np.testing.assert_array_equal(x, y)
  total, weight = found["policy/kl_reference"]
  assert total / weight > 1e-3
  np.testing.assert_array_equal(total, same["policy/kl_reference"][0])


@pytest.mark.slow
def test_rank_0_is_the_update_of_all_parameters():
  whole = dataclasses.replace(CONFIG, rank=0)
  before, after, _ = updated(worlds.policy(), worlds.policy(), config=whole)
  for x, y in zip(
    jax.tree.leaves(before.policy), jax.tree.leaves(after.policy), strict=True
  ):
    assert not np.array_equal(x, y)


def test_a_critic_begins_without_adapters():
  critic = heads.init_critic(with_adapters(), own_trunk=True)
  assert not lora.has(critic["trunk"])


@pytest.mark.slow
def test_matrices_in_bfloat16_give_the_same_adapters_to_the_bit():
  model = dataclasses.replace(worlds.model(), compute="bfloat16")
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), worlds.policy())
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
  (before, after, _), (_, same, _) = (
    updated(policy, None, model=model) for policy in (narrow, wide)
  )
  (trained, frozen), (begun, _), (other, _) = (
    lora.split(state.policy) for state in (after, before, same)
  )
  assert {x.dtype for x in trained.values()} == {jnp.dtype("float32")}
  # The scales of the adapters are no numbers of the model.
  kinds = {str(x.dtype) for k, x in frozen.items() if "lora" not in k}
  assert kinds == {"bfloat16"}
  assert any((trained[k] != begun[k]).any() for k in trained)
  for path, leaf in trained.items():
    np.testing.assert_array_equal(leaf, other[path])


def test_a_critic_of_its_own_is_trained_in_float32_whatever_the_policy_is():
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), worlds.policy())
  critic = heads.init_critic(narrow, own_trunk=True)
  assert {str(x.dtype) for x in jax.tree.leaves(critic)} == {"float32"}


@pytest.mark.slow
def test_supervised_steps_train_adapters_alone():
  rows = jax.tree.map(lambda x: x[0], learner_runs.packed().tokens)
  optimizer, step = supervised.make_step(
    worlds.model(), learner_options.SupervisedConfig(warmup_steps=0)
  )
  start = lora.add(worlds.policy(), CONFIG, jax.random.key(0))
  state = optimizer.init(lora.split(start)[0])
  params, losses = jax.tree.map(jnp.array, start), []
  for _ in range(8):
    params, state, loss = step(params, state, rows)
    losses.append(float(loss))
  assert losses[-1] < losses[0] - 0.1
  for x, y in zip(
    jax.tree.leaves(lora.off(params)), jax.tree.leaves(worlds.policy()),
    strict=True,
  ):  # fmt: skip
    np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_run_exports_a_policy_of_low_rank_change(tmp_path):
  options = small_runs.small_config(tmp_path, num_updates=2)
  options = dataclasses.replace(
    options,
    learner=dataclasses.replace(
      options.learner, lora=models_options.LoraConfig(rank=2), critic_warmup=0,
      learning_rate=1e-2, warmup_steps=0,
    ),
  )  # fmt: skip
  folder = small_runs.run(options)
  start, _ = weights.load_params(tmp_path / "start.safetensors")
  trained, _ = weights.load_params(folder / "policy.safetensors")
  start, trained = trees.flatten(start), trees.flatten(trained)
  assert set(start) == set(trained)
  for path, old in start.items():
    change = trained[path] - old
    if path.endswith("kernel"):
      size = np.linalg.svd(change[0], compute_uv=False)
      assert size[1] > 1e-4 > 10 * size[2]
    else:
      assert not change.any()
  # The adapters by themselves, as PEFT has them, are the same policy...
  _, again = policy.load_policy(str(folder / "adapter"), worlds.tokenizer())
  assert lora.has(again)
  for path, value in trees.flatten(lora.merge(again)).items():
    np.testing.assert_allclose(value, trained[path], atol=1e-6)
  # ... and start a run, which trains on them and not on others.
  start = dataclasses.replace(
    options, weights=str(folder / "adapter"), run_dir=str(tmp_path / "next")
  )
  with pytest.raises(ValueError, match=r"brings adapters.*lora\.rank=2 out"):
    small_runs.run(start)


@pytest.mark.slow
def test_a_run_goes_on_from_adapters_and_leaves_their_base(tmp_path):
  options = small_runs.small_config(tmp_path, num_updates=1)
  params = with_adapters()
  peft.save(
    tmp_path / "brought", worlds.model(), params,
    base=str(pathlib.Path(options.weights).absolute()),
  )  # fmt: skip
  options = dataclasses.replace(
    options,
    weights=str(tmp_path / "brought"),
    # A KL to the policy that it begins with, adapters included.
    algorithm=dataclasses.replace(options.algorithm, kl_coef=0.1),
    learner=dataclasses.replace(
      options.learner,
      critic_warmup=0,
      learning_rate=1e-2,
      warmup_steps=0,
      num_minibatches=1,
    ),
  )
  folder = small_runs.run(options)
  _, after = policy.load_policy(str(folder / "adapter"), worlds.tokenizer())
  before, after = trees.flatten(params), trees.flatten(after)
  assert before.keys() == after.keys()
  for path, value in before.items():
    moved = not np.allclose(value, after[path], atol=1e-6)
    assert moved == path.endswith(("lora_a", "lora_b")), path
  line = metrics.read_jsonl(folder / "metrics.jsonl")[-1]
  # One step, taken where the policy is the one that it began with.
  assert 0 <= line["policy/kl_reference"] < 1e-6
