"""Eight devices compute what one does, however the model is split over them."""

import functools
import itertools

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import some

from steppo_jax import trees
from steppo_jax.models import attend, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models.formats import hub
from steppo_jax.ops import logprobs

MESHES = {
  "fsdp 8": dict(data=1, fsdp=8, tensor=1),
  "fsdp 4 x tensor 2": dict(data=1, fsdp=4, tensor=2),
  "data 2 x fsdp 4": dict(data=2, fsdp=4, tensor=1),
}
ROWS = 8


def rows():
  """Eight different rows of 40 tokens."""
  ids = families.recorded("gemma3")[0][0]
  tokens = np.stack([np.roll(ids, i) for i in range(ROWS)])
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  end = np.full(tokens.shape, tokens.shape[1])
  return [x.astype(np.int32) for x in (tokens, positions, end)]


@functools.partial(jax.jit, static_argnums=0)
def computed(model, params, tokens, positions, end):
  """Logits, loss and gradient as the learner's functions give them."""
  run = attend.over_rows(
    end, positions, block=8, implementation="xla", mesh=None
  )

  def loss(params):
    hidden = transformer.apply(model, params, tokens, positions, run)
    logp, entropy = logprobs.next_token_logprobs(
      hidden, transformer.unembedding(params), tokens,
      jnp.maximum(positions - 1, 0), positions > 0, chunk=64,
      temperature=1.0, softcap=model.softcap,
    )  # fmt: skip
    return (entropy - logp).mean(), transformer.logits(model, params, hidden)

  (total, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return logits, total, grads


@functools.cache
def on_one(name):
  model, params = families.checkpoint(name)
  return jax.device_get(computed(model, params, *rows()))


@pytest.mark.parametrize(
  ("name", "shape"),
  some(
    slow=list(itertools.product(("llama3", "gemma3"), MESHES)),
  ),
)  # fmt: skip
def test_devices_give_the_logits_loss_and_gradient_of_one(shape, name):
  mesh = mesh_lib.make_model_mesh(**MESHES[shape])
  model, params = hub.load(
    families.ROOT / name, placement=mesh_lib.by_path(mesh)
  )
  split = [jax.device_put(x, mesh_lib.by_row(mesh, 0)) for x in rows()]
  gate = params["layers"]["gate"]["kernel"]
  parts = MESHES[shape]["fsdp"] * MESHES[shape]["tensor"]
  assert gate.addressable_shards[0].data.size * parts == gate.size
  whole = families.checkpoint(name)[1]
  for path, leaf in trees.flatten(params).items():
    np.testing.assert_array_equal(leaf, trees.flatten(whole)[path])
  logits, loss, grads = computed(model, params, *split)
  want = on_one(name)
  # Of the largest: float32 sums in another order.
  size = np.abs(want[0]).max()
  np.testing.assert_allclose(logits, want[0], atol=1e-5 * size, rtol=0)
  np.testing.assert_allclose(loss, want[1], rtol=1e-5)
  for x, y in zip(
    jax.tree.leaves(grads), jax.tree.leaves(want[2]), strict=True
  ):
    size = max(1.0, np.abs(y).max())
    np.testing.assert_allclose(x, y, atol=1e-5 * size, rtol=0)


def test_a_mesh_takes_all_devices():
  with pytest.raises(ValueError, match="data=2 x fsdp=2 x tensor=1 are not 8"):
    mesh_lib.make_model_mesh(data=2, fsdp=2, tensor=1)
