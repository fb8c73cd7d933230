"""Attention under the interval mask: XLA and Pallas against a slow loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from marks import some

from steppo_jax.models import attend
from steppo_jax.ops import attention, attention_pallas

T = 22  # no multiple of any block below
xla = lambda block: functools.partial(attention.interval_attention, block=block)
pallas = lambda block_q, block_k: functools.partial(
  attention_pallas.interval_attention_tpu,
  block_q=block_q,
  block_k=block_k,
  interpret=True,
)
IMPLEMENTATIONS = {
  "one_softmax": xla(32),
  "unrolled": xla(8),
  "loop": xla(4),
  "pallas": pallas(8, 4),
  "pallas_long_keys": pallas(4, 8),
}
# Kernels are interpreted here, which takes long.
SHORT = some(
  *(x for x in IMPLEMENTATIONS if "pallas" not in x), slow=IMPLEMENTATIONS
)


def forest(rng, tokens=T):
  """subtree_end [T] of random tries in depth-first order, then padding."""
  used = int(rng.integers(0, tokens + 1))
  # How often a token begins a tree, and how often it continues the last one.
  root, go_on = rng.choice([0.0, 0.1, 0.3]), rng.choice([0.5, 0.9, 1.0])
  end, path = np.arange(tokens), []
  for i in range(used):
    if rng.uniform() < root:
      path = []
    elif rng.uniform() >= go_on:
      path = path[: rng.integers(0, len(path) + 1)]
    path = [*path, i]
    end[path] = i + 1
  return end.astype(np.int32)


def forests(seed, rows=4, tokens=T):
  """Random rows, the first a single chain and the last only padding."""
  rng = np.random.default_rng(seed)
  some = [forest(rng, tokens) for _ in range(rows - 2)]
  return np.stack([np.full(tokens, tokens), *some, np.arange(tokens)]).astype(
    np.int32
  )


def arrays(seed, end, heads=4, kv_heads=2, width=8):
  """q, k, v and an output gradient; 1e30 in the tokens that nobody sees."""
  rng = np.random.default_rng(seed)
  shapes = [(*end.shape, n, width) for n in (heads, kv_heads, kv_heads, heads)]
  used = (end > np.arange(end.shape[1]))[..., None, None]
  draw = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
  fill = [np.float32(x) for x in (1e30, 1e30, 1e30, 0.0)]
  return [np.where(used, x, y) for x, y in zip(draw, fill, strict=True)]


def slow_attention(q, k, v, end, dout):
  """Output and dq, dk, dv in float64, a query at a time."""
  q, k, v, dout = (np.asarray(x, np.float64) for x in (q, k, v, dout))
  out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
  rows, tokens, heads, width = q.shape
  for b, i, h in np.ndindex(rows, tokens, heads):
    kv = h // (heads // k.shape[2])
    seen = [j for j in range(i + 1) if i < end[b, j]]
    if not seen:
      continue
    keys, values = k[b, seen, kv], v[b, seen, kv]
    score = keys @ q[b, i, h] / np.sqrt(width)
    weight = np.exp(score - score.max())
    weight /= weight.sum()
    out[b, i, h] = weight @ values
    dweight = values @ dout[b, i, h]
    dscore = weight * (dweight - weight @ dweight) / np.sqrt(width)
    dq[b, i, h] = dscore @ keys
    dk[b, seen, kv] += np.outer(dscore, q[b, i, h])
    dv[b, seen, kv] += np.outer(weight, dout[b, i, h])
  return out, dq, dk, dv


@functools.partial(jax.jit, static_argnums=0)
def fast_attention(function, q, k, v, end, dout):
  out, pull = jax.vjp(lambda q, k, v: function(q, k, v, end), q, k, v)
  return out, *pull(dout.astype(out.dtype))


def close(got, expected, rtol=1e-5):
  """Equal up to a share of the largest number in the array."""
  got = np.asarray(got, np.float32)
  np.testing.assert_allclose(
    got, expected, rtol=rtol, atol=rtol * np.abs(expected).max()
  )


def hold(function, q, k, v, end, dout, rtol=1e-5):
  """The function against the loop, where tokens see something."""
  got = fast_attention(function, q, k, v, end, dout)
  used = (end > np.arange(end.shape[1]))[..., None, None]
  assert np.isfinite(got[0]).all()
  expected = slow_attention(q, k, v, end, dout)
  close(np.where(used, got[0], 0), expected[0], rtol)
  for x, y in zip(got[1:], expected[1:], strict=True):
    close(x, y, rtol)


@pytest.mark.parametrize("name", SHORT)
def test_outputs_and_gradients_equal_a_slow_loop(name):
  for seed in range(4):
    end = forests(seed)
    q, k, v, dout = arrays(seed, end)
    hold(IMPLEMENTATIONS[name], q, k, v, end, dout)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (3, 1)])
@pytest.mark.parametrize("name", some("loop", slow=["pallas"]))
def test_query_heads_share_key_heads(name, heads, kv_heads):
  end = forests(5, rows=3)
  q, k, v, dout = arrays(5, end, heads, kv_heads)
  hold(IMPLEMENTATIONS[name], q, k, v, end, dout)


@pytest.mark.parametrize("name", some("loop", slow=["pallas"]))
def test_bfloat16_is_accumulated_in_float32(name):
  end = forests(6)
  inputs = [jnp.asarray(x, jnp.bfloat16) for x in arrays(6, end)]
  q, k, v, dout = inputs
  hold(IMPLEMENTATIONS[name], q, k, v, end, dout, rtol=2e-2)


@pytest.mark.parametrize("name", SHORT)
def test_plain_causal_rows_equal_the_attention_of_jax(name):
  end = np.full((2, T), T, np.int32)
  q, k, v, dout = arrays(7, end)
  causal = lambda q, k, v, end: jax.nn.dot_product_attention(
    q, k, v, is_causal=True
  )
  got = fast_attention(IMPLEMENTATIONS[name], q, k, v, end, dout)
  expected = fast_attention(causal, q, k, v, end, dout)
  for x, y in zip(got, expected, strict=True):
    close(x, np.asarray(y))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_rows_of_only_padding_are_finite_and_give_no_gradient(name):
  end = np.tile(np.arange(T, dtype=np.int32), (2, 1))
  q, k, v, dout = arrays(8, end)
  out, *gradients = fast_attention(IMPLEMENTATIONS[name], q, k, v, end, dout)
  assert np.isfinite(out).all()
  for x in gradients:
    np.testing.assert_array_equal(x, np.zeros_like(x))


@pytest.mark.parametrize("block_q", [2, 4, 8])
@pytest.mark.parametrize("block_k", [2, 4, 8])
def test_block_map_equals_a_count_of_visible_pairs(block_q, block_k):
  end = np.concatenate([forests(seed, tokens=24) for seed in range(20)])
  got = attention.interval_blocks(end, block_q=block_q, block_k=block_k)
  mask = np.asarray(attention.interval_mask(end))
  counts = mask.reshape(len(end), 24 // block_q, block_q, -1, block_k)
  expected = counts.any((2, 4))
  assert not (expected & ~np.asarray(got)).any()
  if block_q % block_k == 0:
    np.testing.assert_array_equal(got, expected)


def test_mask_and_block_map_of_two_chains():
  # Tokens 0 to 2, tokens 3 and 4, one unused slot.
  end = np.array([[3, 3, 3, 5, 5, 5]], np.int32)
  expected = ["x     ", "xx    ", "xxx   ", "   x  ", "   xx ", "      "]
  expected = [[c == "x" for c in line] for line in expected]
  np.testing.assert_array_equal(attention.interval_mask(end)[0], expected)
  blocks = attention.interval_blocks(end, block_q=2, block_k=2)
  expected = [[True, False, False], [True, True, False], [False, True, True]]
  np.testing.assert_array_equal(blocks[0], expected)


def test_steps_without_a_pair_fetch_nothing_new():
  seen = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
  # Used: 1 and 3. Before the first, 1 already; later, the last one used.
  got = attention_pallas.fetch_map(seen[None])
  np.testing.assert_array_equal(got, [-2, 1, -2, 3, -4, -1, -1, -1, -1, -1])


@pytest.mark.parametrize(
  "name", some("loop", slow=["pallas", "pallas_long_keys"])
)
def test_pairs_of_blocks_without_a_visible_pair_are_not_computed(name):
  # Two chains of eight tokens, eight unused slots. A mask alone would not stop
  # NaN in the first chain and the unused slots: 0 * NaN = NaN.
  end = np.repeat([8, 16, 0], 8)
  end = np.where(np.arange(24) < 16, end, np.arange(24))[None].astype(np.int32)
  q, k, v, dout = arrays(9, end)
  dout[:, :8] = 0
  hidden = (np.arange(24) // 8 != 1)[:, None, None]
  poisoned = [np.where(hidden, np.nan, x).astype(np.float32) for x in (q, k, v)]
  got = fast_attention(IMPLEMENTATIONS[name], *poisoned, end, dout)
  expected = fast_attention(IMPLEMENTATIONS[name], q, k, v, end, dout)
  for x, y in zip(got, expected, strict=True):
    np.testing.assert_array_equal(x[:, 8:16], y[:, 8:16])
    # The unused slots are never read, so not even they see NaN.
    np.testing.assert_array_equal(x[:, 16:], np.zeros_like(x[:, 16:]))


def test_long_rows_take_linear_memory_and_one_program():
  def compiled(tokens):
    end = np.full((1, tokens), tokens, np.int32)
    lowered = fast_attention.lower(
      xla(16), *arrays(0, end)[:3], end, *arrays(0, end)[3:]
    )
    size = lowered.compile().memory_analysis().temp_size_in_bytes
    return size, lowered.as_text().count("\n")

  (small, lines), (large, more_lines) = compiled(256), compiled(1024)
  # Four times as long: 4 if linear, 16 if any [T, T] array were kept.
  assert large < 5 * small
  assert lines == more_lines


@pytest.mark.slow
@pytest.mark.parametrize("name", some("pallas", slow=["unrolled", "loop"]))
def test_vmap_and_shard_map_agree_with_jit(name):
  end = forests(10)
  q, k, v, dout = arrays(10, end)

  def run(q):
    loss = lambda q: (IMPLEMENTATIONS[name](q, k, v, end) * dout).sum()
    value, gradient = jax.value_and_grad(loss)(q)
    return jnp.append(gradient, value)

  # Eight different queries over vmap and over a mesh of eight devices; keys,
  # values and subtrees are the same on all of them.
  many = np.linspace(1.0, 2.0, 8, dtype=np.float32)
  many = many[:, None, None, None, None] * np.where(q == 1e30, 0, q)
  mapped = jax.jit(jax.vmap(run))(many)
  close(mapped[7], np.asarray(jax.jit(run)(many[7])))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  sharded = jax.shard_map(
    lambda q: run(q[0])[None],
    mesh=mesh,
    in_specs=P("data"),
    out_specs=P("data"),
    # JAX cannot check an interpreted kernel.
    check_vma=name != "pallas",
  )
  close(jax.jit(sharded)(many), np.asarray(mapped))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_rows_split_over_devices_give_the_same_attention(implementation):
  end = forests(11, rows=8)
  q, k, v, dout = arrays(11, end)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  function = functools.partial(
    attend.attend_rows, block=4, implementation=implementation
  )
  rows = jax.sharding.NamedSharding(mesh, P("data"))
  split = jax.device_put([q, k, v, end, dout], rows)
  got = fast_attention(functools.partial(function, mesh=mesh), *split)
  expected = fast_attention(IMPLEMENTATIONS["loop"], q, k, v, end, dout)
  used = (end > np.arange(T))[..., None, None]
  close(np.where(used, got[0], 0), np.where(used, expected[0], 0))
  for x, y in zip(got[1:], expected[1:], strict=True):
    close(x, np.asarray(y))
  # No device waits for another one's rows.
  if implementation == "xla":
    lowered = fast_attention.lower(
      functools.partial(function, mesh=mesh), *split
    )
    assert "all-reduce" not in lowered.compile().as_text()


def test_wrong_options_are_named():
  end = forests(12)
  q, k, v, _ = arrays(12, end)
  tpu = functools.partial(
    attention_pallas.interval_attention_tpu, interpret=False
  )
  with pytest.raises(ValueError, match="block_q=64 and block_k=128 must"):
    tpu(q, k, v, end, block_q=64, block_k=128)
  long = [jax.ShapeDtypeStruct((1, 65536, 2, 64), jnp.float32)] * 3
  ends = jax.ShapeDtypeStruct((1, 65536), jnp.int32)
  with pytest.raises(ValueError, match="take larger blocks or fewer rows"):
    jax.eval_shape(
      functools.partial(tpu, block_q=128, block_k=128), *long, ends
    )
  with pytest.raises(ValueError, match="implementation='mosaic' must be"):
    attend.attend_rows(
      q, k, v, end, block=4, implementation="mosaic", mesh=None
    )
  with pytest.raises(ValueError, match="attention='mosaic' is none of"):
    attend.resolve("mosaic")


def test_a_kernel_is_chosen_on_a_tpu_only():
  assert jax.default_backend() == "cpu"
  assert [attend.resolve(x) for x in ("auto", "xla", "pallas")] == [
    "xla",
    "xla",
    "pallas",
  ]
