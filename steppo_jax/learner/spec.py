"""What an update is made of, and work over its rows, a microbatch at a time."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.extend import core as jax_core

from steppo_jax.algorithms.table import Algorithm
from steppo_jax.batch import TokenBatch
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.models import attend, heads, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.ops import logprobs, tiled_logprobs


class Model(NamedTuple):
  """A model of one's own: any tree of parameters, and what is computed of it.

  Both functions are traced. They get a `batch.TokenBatch` of some rows [r, T],
  whose token at `parent` precedes each token, and their numbers are read at
  the same places: a log-probability where `step_ids` is above 0, a value at the
  last token of a prompt. Everywhere else anything finite will do. What they
  return is checked while an update is traced.

  Attributes:
    log_probs: (policy, rows) -> log-probabilities and entropies, both [r, T]:
      of each sampled token under the policy, and of what it was drawn from.
    values: (critic, rows) -> V at every token [r, T], in reward units; None
      for rows of the table without a critic. For a row whose critic is "both"
      it may be a pair of such arrays, V of the steps and V of the tokens; one
      array is then both. With `batch.prompts` its rows hold prompts alone, in
      other places: `step_ids` is 0 everywhere, and `reasoning` None.
    log_probs_and_energies: (reference, rows) -> log-probabilities as above and
      energies, both [r, T]: E = -log Σ exp(logits) at temperature 1, of the
      logits that each token was drawn from. Read by rows with `focus_alpha`,
      the `actfocus_*`, alone; None for all others.
  """

  log_probs: Callable[[Any, TokenBatch], tuple[chex.Array, chex.Array]]
  values: (
    Callable[[Any, TokenBatch], chex.Array | tuple[chex.Array, chex.Array]]
    | None
  ) = None
  log_probs_and_energies: (
    Callable[[Any, TokenBatch], tuple[chex.Array, chex.Array]] | None
  ) = None


class UpdateSpec(NamedTuple):
  """What an update is made of, constant over a run.

  A batch is a `learner.state.Batch` with tokens [M, R, T]: R rows in each of M
  mini-batches.

  Attributes:
    model: Sizes of our decoder, or a `Model` of one's own.
    algorithm: Row of the table; its numbers may be traced scalars.
    config: The learner's options; likewise.
    policy_optimizer: Of the policy.
    critic_optimizer: Of the critic.
    mesh: Devices that rows are split over.
    seed: Root of the order of mini-batches, an int or a traced scalar.
    temperature: The sampler's: the policy is softmax(logits / temperature).
    differentiable: True computes unused rows too. Only rows in use are computed
      otherwise, in a loop whose length is data, which JAX cannot differentiate
      in reverse. It also attends without loop and kernel, for the same reason.
    most: Most action tokens that a row of the batch has, a scalar; see `on`.
    staleness: Most updates that a step may lie behind, which are told apart in
      the metrics (`modes.drift`); 0 tells none apart.
    axis: Name and size of an axis of `jax.pmap` whose devices take their share
      of the rows of each microbatch and add up what they find; see `pmapped`.
      None leaves it to the compiler to split the rows over the mesh.
  """

  model: transformer.ModelConfig | Model
  algorithm: Algorithm
  config: LearnerConfig
  policy_optimizer: optax.GradientTransformation
  critic_optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  seed: chex.Numeric
  temperature: float = 1.0
  differentiable: bool = False
  staleness: int = 0
  axis: tuple[str, int] | None = None
  most: chex.Array | None = None

  def on(self, rows: TokenBatch) -> "UpdateSpec":
    """For the rows of one batch: what is empty in all of them is skipped.

    Several runs on one batch under vmap take their mini-batches in orders of
    their own; what they have in common is the batch.
    """
    most = jnp.max(jnp.sum(rows.step_ids > 0, axis=-1, dtype=jnp.int32))
    return self._replace(most=most)

  def attend(self, rows: TokenBatch) -> Callable:
    kernel = attend.resolve(self.config.attention)
    block = self.config.attention_block
    if self.differentiable:
      # One block: a second derivative of several takes long to compile.
      kernel, block = "xla", rows.tokens.shape[1]
    return attend.over_rows(
      rows.subtree_end,
      rows.positions,
      block=block,
      implementation=kernel,
      # The compiler splits the rows of everything but a kernel by itself.
      mesh=self.mesh if kernel == "pallas" and self.axis is None else None,
    )

  def hidden(self, policy, rows: TokenBatch):
    """Hidden states [r, T, D] of some rows."""
    return transformer.apply(
      self.model, policy, rows.tokens, rows.positions, self.attend(rows)
    )

  def logp(self, policy, rows: TokenBatch, hidden=None):
    """Log-probs and entropies [r, T] of the tokens of some rows.

    `hidden` is the policy's `hidden` of these rows where it is known.
    """
    if isinstance(self.model, Model):
      found = self.model.log_probs(policy, rows)
      return _pair("Model.log_probs", found, rows)
    if hidden is None:
      hidden = self.hidden(policy, rows)
    return self._of_tokens(policy, rows, hidden, energies=False)

  def _of_tokens(self, policy, rows: TokenBatch, hidden, *, energies: bool):
    table = transformer.unembedding(policy, self.model.num_ids)
    return self.logprobs(rows.tokens.size, table.shape[0], energies=energies)(
      hidden,
      table,
      rows.tokens,
      rows.parent,
      rows.step_ids > 0,
      temperature=self.temperature,
      softcap=self.model.softcap,
    )

  def logprobs(
    self, tokens: int, vocabulary: int, *, energies: bool = False
  ) -> Callable:
    """What makes log-probs of so many tokens; see `ops.tiled_logprobs`.

    On CPU that is one product of a chunk of tokens with the vocabulary, which
    is faster there, unless the model is split over devices; so it is where a
    second derivative is asked for, which the tiles do not have. With `energies`
    those are returned, too; tiles then have no gradient.
    """
    alone = self.axis is not None or self.mesh.size == 1
    if self.differentiable or (
      jax.default_backend() == "cpu"
      and (alone or "fsdp" not in self.mesh.shape)
    ):
      return functools.partial(
        logprobs.next_token_logprobs_and_energies
        if energies
        else logprobs.next_token_logprobs,
        chunk=self.config.logprob_chunk,
        most=self.most,
        skip=not self.differentiable,
      )
    split, devices = None, 1
    if not alone:
      split = vocabulary_split(self.mesh, tokens, vocabulary)
      devices = self.mesh.size
    return functools.partial(
      tiled_logprobs.tiled_logprobs_and_energies
      if energies
      else tiled_logprobs.tiled_logprobs,
      split=split,
      chunk=self.config.logprob_chunk * devices,
    )

  def keeps(self, critic, policy, batch) -> bool:
    """Are hidden states kept from the values to the epochs of the critic?

    They are if its trunk is the policy's, as it is, and no epoch moves that,
    and they take no more of a device than the policy does, or 256 MiB.
    """
    if critic is None or isinstance(self.model, Model):
      return False
    if "trunk" in critic or "adapters" in critic:
      return False
    count = batch.tokens.tokens.size * self.model.width
    rows = count * jnp.dtype(self.model.compute).itemsize
    if self.axis is None:
      rows //= mesh_lib.row_parts(self.mesh)
    return rows <= max(_device_bytes(self.mesh, policy), _KEPT)

  def logp_and_energy(self, policy, rows: TokenBatch):
    """Log-probs and energies [r, T] of the tokens of some rows."""
    if isinstance(self.model, Model):
      found = self.model.log_probs_and_energies(policy, rows)
      return _pair("Model.log_probs_and_energies", found, rows)
    logp, _, energy = self._of_tokens(
      policy, rows, self.hidden(policy, rows), energies=True
    )
    return logp, energy

  def values(self, critic, policy, rows: TokenBatch):
    """V at every token [r, T] of some rows; see `heads.values`.

    Where the row's critic is "both" a pair of them, of steps and of tokens.
    """
    if isinstance(self.model, Model):
      return self._values(self.model.values(critic, rows), rows)
    found = heads.values(
      self.model,
      critic,
      policy,
      rows.tokens,
      rows.positions,
      self.attend(rows),
      self.config.critic_lora,
    )
    return self._values(found, rows)

  def read_values(self, critic, rows: TokenBatch, hidden):
    """`values` of the hidden states of these rows."""
    return self._values(heads.read(critic, hidden), rows)

  def _values(self, found, rows: TokenBatch):
    """What a critic returned, as the row's clock wants it."""
    name = "Model.values" if isinstance(self.model, Model) else "the critic"
    if self.algorithm.critic == "both":
      if not isinstance(found, tuple | list):
        found = (found, found)
      return _pair(name, found, rows)
    _check_output(name, found, rows)
    return found

  @property
  def size(self) -> int:
    """Rows of a microbatch that are computed here."""
    rows = self.config.microbatch_rows
    return rows if self.axis is None else rows // self.axis[1]

  def first_row(self, i):
    """The first of these rows of microbatch i in its part."""
    first = i * self.config.microbatch_rows
    if self.axis is not None:
      first += jax.lax.axis_index(self.axis[0]) * self.size
    return jnp.asarray(first, jnp.int32)

  def added(self, found):
    """Sums over all devices that compute rows."""
    return found if self.axis is None else jax.lax.psum(found, self.axis[0])

  def rows(self, batch, m, i, array=None):
    """Rows of microbatch i of part m, and of an [M, R, T] array."""
    first = self.first_row(i)

    def cut(x):
      part = jax.lax.dynamic_index_in_dim(x, m, 0, keepdims=False)
      part = jax.lax.dynamic_slice_in_dim(part, first, self.size, 0)
      return self._by_row(part, 0)

    return jax.tree.map(cut, batch.tokens if array is None else array)

  def count(self, batch, m):
    """Number of microbatches of part m that are computed."""
    size = self.config.microbatch_rows
    if self.differentiable:
      return batch.tokens.tokens.shape[1] // size
    return (batch.rows_used[m] + size - 1) // size

  def sum_over(self, batch, m, function):
    """Adds function(rows of microbatch i, i) over the microbatches of part m.

    Unused rows hold no action token, so that they add nothing.
    """
    each = lambda i: function(self.rows(batch, m, i), i)
    each, like = _traced(each, jax.ShapeDtypeStruct((), jnp.int32))

    def body(i, total):
      found = each(jnp.asarray(i, jnp.int32))
      # Sums of gradients are split as the parameters are.
      return mesh_lib.constrain(self.mesh, jax.tree.map(jnp.add, total, found))

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    zero = mesh_lib.constrain(self.mesh, zero)
    return self.added(jax.lax.fori_loop(0, self.count(batch, m), body, zero))

  def over_all_rows(self, batch, function, kept=None):
    """Applies function(rows) -> [r, T] arrays everywhere; [M, R, T] each.

    Rows that are not computed hold 0. With `kept`, of `keep`, the function also
    gets what was kept of the same rows.
    """
    shape = batch.tokens.tokens.shape

    def of(m, i):
      more = () if kept is None else (self.kept(kept, m, i),)
      return function(self.rows(batch, m, i), *more)

    def part(m, out):
      def body(i, out):
        put = lambda whole, x: jax.lax.dynamic_update_slice(
          whole, x[None], (jnp.int32(m), self.first_row(i), jnp.int32(0))
        )
        return jax.tree.map(put, out, of(m, i))

      return jax.lax.fori_loop(0, self.count(batch, m), body, out)

    out = jax.tree.map(
      lambda x: jnp.zeros(shape, x.dtype), jax.eval_shape(of, 0, 0)
    )
    # Each row is computed by one device, and 0 at the others.
    return self.added(jax.lax.fori_loop(0, shape[0], part, out))

  def keep(self, batch, function):
    """function(rows) -> [r, T, D] of all microbatches, where it was computed.

    Returns:
      [M, I, r, T, D]: I microbatches of r rows, which are split over devices as
      they are in each microbatch, so that nothing is moved to be kept or read.
    """
    parts, rows, _ = batch.tokens.tokens.shape
    like = jax.eval_shape(function, self.rows(batch, 0, 0))
    count = rows // self.config.microbatch_rows

    def part(m, out):
      def body(i, out):
        found = function(self.rows(batch, m, i))[None, None]
        return self._by_row(
          jax.lax.dynamic_update_slice(out, found, _place(m, i)), 2
        )

      return jax.lax.fori_loop(0, self.count(batch, m), body, out)

    out = jnp.zeros((parts, count, *like.shape), like.dtype)
    return jax.lax.fori_loop(0, parts, part, self._by_row(out, 2))

  def kept(self, array, m, i):
    """What `keep` kept of microbatch i of part m."""
    shape = (1, 1, *array.shape[2:])
    found = jax.lax.dynamic_slice(array, _place(m, i), shape)
    return self._by_row(found.reshape(shape[2:]), 0)

  def _by_row(self, array, axis: int):
    if self.axis is not None:
      return array
    return jax.lax.with_sharding_constraint(
      array, mesh_lib.by_row(self.mesh, axis)
    )


def _pair(name: str, found, rows: TokenBatch):
  """Two outputs of a model [r, T], checked."""
  if not isinstance(found, tuple | list) or len(found) != 2:
    raise ValueError(
      f"{name} is to return two arrays of the shape of rows.tokens, "
      f"{rows.tokens.shape}, not {_described(found)}"
    )
  for x in found:
    _check_output(name, x, rows)
  return tuple(found)


def _check_output(name: str, found, rows: TokenBatch) -> None:
  """Refuses an output of a model that is not one float for each token."""
  shape, kind = getattr(found, "shape", None), getattr(found, "dtype", None)
  if shape != rows.tokens.shape or not jnp.issubdtype(kind, jnp.floating):
    raise ValueError(
      f"{name} is to return floats of the shape of rows.tokens, "
      f"{rows.tokens.shape}, not {_described(found)}"
    )


def _described(found) -> str:
  """What was returned, for an error: types and shapes, and no values."""
  if isinstance(found, tuple | list):
    return f"{len(found)} of them: {', '.join(map(_described, found))}"
  if not hasattr(found, "shape") or not hasattr(found, "dtype"):
    return type(found).__name__
  return f"{found.dtype}{list(found.shape)}"


def _place(m, i):
  """Where the hidden states of microbatch i of part m begin."""
  return tuple(map(jnp.int32, (m, i, 0, 0, 0)))


# Bytes of hidden states that are kept whatever the size of the policy.
_KEPT = 2**28


def _device_bytes(mesh: jax.sharding.Mesh, tree) -> int:
  """Bytes of some parameters, or their shapes, that one device holds."""
  of = lambda x, where: math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize
  return sum(
    jax.tree.leaves(jax.tree.map(of, tree, mesh_lib.placements(mesh, tree)))
  )


def vocabulary_split(
  mesh: jax.sharding.Mesh, tokens: int, vocabulary: int
) -> tiled_logprobs.Split:
  """How the devices of a mesh share the work on the vocabulary.

  "tensor" always splits it: its devices hold the same tokens. Those of "fsdp"
  hold other tokens, and either send them to each other, or send each other the
  table: whichever is less.

  Args:
    mesh: The devices.
    tokens: Tokens of a microbatch, on all of them.
    vocabulary: Rows of the table.
  """
  rows = mesh_lib.row_axes(mesh)
  axes = tuple(name for name in ("tensor",) if mesh.shape.get(name, 1) > 1)
  if (
    mesh.shape.get("fsdp", 1) > 1 and tokens // mesh.shape["data"] <= vocabulary
  ):
    axes += ("fsdp",)
  return tiled_logprobs.Split(
    mesh, (rows,) if isinstance(rows, str) else rows, axes
  )


def _traced(function: Callable, *args) -> tuple[Callable, chex.ArrayTree]:
  """The function as it was traced once, and the shapes of what it returns.

  A loop that adds up needs the shapes before it begins, and would else be
  traced twice, which is most of the time that an update takes to trace.
  """
  closed, like = jax.make_jaxpr(function, return_shape=True)(*args)
  run, tree = jax_core.jaxpr_as_fun(closed), jax.tree.structure(like)

  def again(*args):
    return jax.tree.unflatten(tree, run(*jax.tree.leaves(args)))

  return again, like
