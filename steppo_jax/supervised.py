"""Supervised learning on demonstrations: the warm start of every method."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steppo_jax import packing, types
from steppo_jax.batch import TokenBatch
from steppo_jax.models import lora, transformer
from steppo_jax.models.lora import LoraConfig
from steppo_jax.ops import attend, logprobs


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  """Budget of supervised training.

  Attributes:
    learning_rate: AdamW's, at its peak; linear warm-up and cosine decay.
    warmup_steps: Optimizer steps of the warm-up.
    num_steps: Optimizer steps.
    rows_per_step: Packed rows in one step.
    weight_decay: AdamW's.
    attention_block: Queries handled at once.
    logprob_chunk: Tokens projected to the vocabulary at once.
    lora: Adapters that are trained instead of the model's own matrices.
  """

  learning_rate: float = 3e-3
  warmup_steps: int = 50
  num_steps: int = 600
  rows_per_step: int = 16
  weight_decay: float = 0.01
  attention_block: int = 64
  logprob_chunk: int = 512
  lora: LoraConfig = LoraConfig()

  def __post_init__(self):
    if not 0 <= self.warmup_steps < self.num_steps:
      raise ValueError(
        f"training.warmup_steps={self.warmup_steps} must be below "
        f"training.num_steps={self.num_steps}, and not below 0"
      )


def demonstration(
  task: types.Task,
  turns: Sequence[tuple[str, str]],
  prompt: Any,
  *,
  max_tokens: int,
) -> types.Trajectory:
  """A recorded episode as step records, cut off before it gets too long.

  Args:
    task: What was demonstrated.
    turns: (observation, action) of every step, in order.
    prompt: Prompt builder, such as `rollout.prompting.CompactPrompt`.
    max_tokens: An episode that would get longer is truncated.

  Raises:
    ValueError: not even the first step fits.
  """
  steps, told = [], [types.Turn(turns[0][0])]
  prompt_ids = prompt.first(told[0])
  for index, (_, action) in enumerate(turns):
    response_ids = prompt.response(action)
    if len(prompt_ids) + len(response_ids) > max_tokens:
      break
    last = index == len(turns) - 1
    steps.append(
      types.Step(
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        response_mask=np.ones(len(response_ids), bool),
        rollout_logprobs=np.zeros(len(response_ids), np.float32),
        reward=float(last),
        trajectory_uid=task.uid,
        step_index=index,
        group_uid=task.uid,
        policy_version=0,
        terminated=last,
      )
    )
    if not last:
      answered = told[-1]._replace(response_ids=response_ids)
      told[-1:] = [answered, types.Turn(turns[index + 1][0])]
      prompt_ids = prompt.extend(prompt_ids, told)
  if not steps:
    raise ValueError(
      f"demonstration {task.uid}: the first step is longer than {max_tokens} "
      "tokens"
    )
  final = None
  if not steps[-1].terminated:
    steps[-1] = dataclasses.replace(steps[-1], truncated=True)
    final = prompt_ids[:max_tokens]
  return types.Trajectory(task.uid, task, tuple(steps), final, final is None)


def batches(
  rows: TokenBatch, config: SupervisedConfig, seed: int
) -> Iterator[TokenBatch]:
  """Yields [rows_per_step, T] batches for ever; a function of the seed."""
  count = rows.tokens.shape[0]
  epoch = 0
  while True:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for i in range(0, count - config.rows_per_step + 1, config.rows_per_step):
      pick = order[i : i + config.rows_per_step]
      yield jax.tree.map(lambda x, pick=pick: x[pick], rows)
    epoch += 1


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
    optimizer_state, loss in nats per action token).
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
      transformer.unembedding(params),
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
    return lora.join(trained, frozen), state, value

  return optimizer, step


def pack_rows(
  trajectories: Sequence[types.Trajectory],
  config: packing.PackingConfig,
  *,
  pad_id: int,
) -> TokenBatch:
  """Demonstrations as rows [B, T]; rows that hold nothing are left out."""
  packed = packing.pack(
    trajectories,
    [0] * len(trajectories),
    config,
    num_parts=1,
    rows_multiple=1,
    pad_id=pad_id,
  )
  used = int(packed.rows_used[0])
  return jax.tree.map(lambda x: x[0, :used], packed.tokens)
