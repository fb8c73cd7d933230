"""Supervised learning on demonstrations: the warm start of every method."""

import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steppo_jax.batch import TokenBatch
from steppo_jax.learner.options import SupervisedConfig
from steppo_jax.models import attend, lora, transformer
from steppo_jax.ops import logprobs


def batches(
  rows: TokenBatch, config: SupervisedConfig, seed: int
) -> Iterator[TokenBatch]:
  """[rows_per_step, T] batches for ever; a function of the seed.

  An epoch leaves out the rows that no longer fill a batch, which are others in
  the next one.

  Raises:
    ValueError: there are fewer rows than a batch has.
  """
  count = rows.tokens.shape[0]
  if count < config.rows_per_step:
    raise ValueError(
      f"{count} rows of demonstrations are fewer than "
      f"training.rows_per_step={config.rows_per_step}: take more "
      "demonstrations, or a smaller training.rows_per_step"
    )
  return _epochs(rows, count, config.rows_per_step, seed)


def _epochs(rows, count, size, seed):
  for epoch in itertools.count():
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for i in range(0, count - size + 1, size):
      pick = order[i : i + size]
      yield jax.tree.map(lambda x, pick=pick: x[pick], rows)


def make_step(
  model: transformer.ModelConfig, config: SupervisedConfig
) -> tuple[optax.GradientTransformation, Callable]:
  """The optimizer and one jitted step: minus mean log p of action tokens.

  Args:
    model: Sizes of the decoder.
    config: The budget.

  Returns:
    The optimizer, whose state is that of the trained part of the parameters
    (`lora.split`), and step(params, optimizer_state, rows) -> (params,
    optimizer_state, loss in nats per action token). The loss is NaN where the
    gradient or the new parameters are not finite.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.warmup_steps, config.num_steps
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay),
  )

  def loss(params, rows: TokenBatch):
    mask = rows.step_ids > 0
    attention = attend.over_rows(
      rows.subtree_end,
      rows.positions,
      block=config.attention_block,
      implementation="xla",
      mesh=None,
    )
    hidden = transformer.apply(
      model, params, rows.tokens, rows.positions, attention
    )
    logp, _ = logprobs.next_token_logprobs(
      hidden,
      transformer.unembedding(params, model.num_ids),
      rows.tokens,
      rows.parent,
      mask,
      chunk=config.logprob_chunk,
      temperature=1.0,
      softcap=model.softcap,
    )
    total = -jnp.sum(jnp.where(mask, logp, 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, rows):
    trained, frozen = lora.split(params)
    of = lambda trained: loss(lora.join(trained, frozen), rows)
    value, grads = jax.value_and_grad(of)(trained)
    updates, state = optimizer.update(grads, state, trained)
    trained = optax.apply_updates(trained, updates)
    # One number tells of all three: nothing more has to leave the device.
    norms = jnp.stack([optax.tree.norm(grads), optax.tree.norm(trained)])
    value = jnp.where(jnp.isfinite(norms).all(), value, jnp.nan)
    return lora.join(trained, frozen), state, value

  return optimizer, step
