"""Options of learning: from rewards (`learner`) and from demonstrations."""

import dataclasses
from typing import Literal

from steppo_jax.algorithms import options as algorithm_options
from steppo_jax.models.options import LoraConfig

OPTIMIZERS = ("adamw", "muon", "adafactor", "schedule_free")


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """How the learner turns one batch into optimizer steps.

  Attributes:
    optimizer: What makes steps of gradients, of policy and critic alike:
      "adamw"; "muon", which moves each matrix of a layer along all its
      directions alike and everything else as AdamW does; "adafactor", which
      keeps less; "schedule_free", AdamW with an average of iterates in place
      of a decay. What they remember of gradients is float32. The rates mean
      the same for all of them.
    learning_rate: Of the policy, at its peak.
    critic_learning_rate: Of the critic, at its peak.
    warmup_steps: Optimizer steps over which the policy's rate rises from 0:
      Adam's first steps have full size whatever the gradient, and the critic
      has yet to learn. At the first of them the rate is 0: it moves Adam's
      averages and no parameter. With 0 the first step has the full rate.
    critic_warmup_steps: The same for the critic's rate, its first step too.
    final_learning_rate: Fraction of both that is left at the last update; the
      decay is linear over `num_updates`.
    weight_decay: Decoupled, as AdamW's, for matrices and vectors alike.
    max_grad_norm: Gradients are scaled down to this global norm.
    num_minibatches: Mini-batches, of whole trajectories each, that a batch is
    cut into.
    actor_epochs: Passes of the policy over the batch.
    critic_epochs: Passes of the critic over the batch.
    critic_warmup: Updates at the start that train the critic alone.
    microbatch_rows: Rows whose gradients are computed at once.
    target_kl: Policy steps stop for the rest of the update once a mini-batch's
      estimate of KL(old‖new), the mean of exp(z) - 1 - z over its tokens,
      exceeds this many nats; None never stops.
    critic_trunk: What the critic's head reads: "own" is a copy of the policy's
      layers that is trained with it; "policy" is the policy's layers as they
      are, which costs no memory, and no gradient of the critic reaches them.
    critic_layers: Layers of a critic that has a trunk of its own, or adapters:
      the first ones of the policy's; None for all.
    critic_lora: Adapters that the critic adds to the policy's layers, with
      critic_trunk="policy": they and the head are trained. The policy's
      matrices are read as they are, without its own adapters, so that a large
      critic costs little memory; where the policy is trained in all parameters
      they move beneath the critic. With critic_layers an update may hold a copy
      of those layers. Rank 0 has none.
    critic_reads: What a critic reads whose values are of steps, at the ends of
      prompts: "prompts" leaves out responses that no later prompt contains, as
      no value depends on them; "all" reads whole rows. Critics with values of
      tokens read whole rows whatever this says, and so do those whose hidden
      states are the policy's own and are kept. A run packs its batches by it;
      in a program of your own `put_batch(..., prompts=)` decides.
    bootstrap: What follows a truncated episode: "value", "zero", "drop_last".
    attention: "xla", "pallas" (a TPU kernel, interpreted elsewhere), or "auto":
      "pallas" on a TPU and "xla" on anything else. Models with sliding windows
      take "xla" everywhere.
    attention_block: Queries handled at once; "pallas" takes at least 512. Rows
      of more than 4 blocks go through a loop, which a differentiable update
      avoids with one block.
    logprob_chunk: Tokens projected to the vocabulary at once. Where the
      vocabulary is worked through in tiles, the logits that a device holds at
      once are no more than those of so many tokens.
    remat: What the backward pass computes again: "none", "dots" all but the
      products with matrices, "full" all of each layer, which holds least.
      "auto" takes the fastest of them that fits the memory that the devices
      have left, as the compiler counts it, and keeps to it when the run is
      resumed on as many devices of that kind. Where they do not say, as a CPU,
      and where the model itself computes something again, that stays.
    lora: Adapters that are trained instead of the policy's own matrices.
  """

  optimizer: Literal["adamw", "muon", "adafactor", "schedule_free"] = "adamw"
  learning_rate: float = 5e-4
  critic_learning_rate: float = 1e-3
  warmup_steps: int = 10
  critic_warmup_steps: int = 10
  final_learning_rate: float = 0.1
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0
  num_minibatches: int = 4
  actor_epochs: int = 1
  critic_epochs: int = 2
  critic_warmup: int = 2
  microbatch_rows: int = 8
  target_kl: float | None = None
  critic_trunk: Literal["own", "policy"] = "own"
  critic_layers: int | None = None
  critic_lora: LoraConfig = LoraConfig()
  critic_reads: Literal["prompts", "all"] = "prompts"
  bootstrap: str = "value"
  attention: Literal["auto", "xla", "pallas"] = "auto"
  attention_block: int = 64
  logprob_chunk: int = 256
  remat: Literal["auto", "none", "dots", "full"] = "auto"
  lora: LoraConfig = LoraConfig()

  def __post_init__(self):
    if self.optimizer not in OPTIMIZERS:
      raise ValueError(
        f"learner.optimizer={self.optimizer!r} is none of "
        f"{', '.join(OPTIMIZERS)}"
      )
    if self.optimizer == "schedule_free" and self.final_learning_rate != 1:
      raise ValueError(
        "learner.optimizer=schedule_free averages in place of a decay: set "
        f"learner.final_learning_rate=1, not {self.final_learning_rate}"
      )
    if self.bootstrap not in algorithm_options.BOOTSTRAPS:
      raise ValueError(
        f"learner.bootstrap={self.bootstrap!r} is none of "
        f"{', '.join(algorithm_options.BOOTSTRAPS)}"
      )
    if self.critic_trunk not in ("own", "policy"):
      raise ValueError(
        f"learner.critic_trunk={self.critic_trunk!r} is none of own, policy"
      )
    if self.critic_reads not in ("prompts", "all"):
      raise ValueError(
        f"learner.critic_reads={self.critic_reads!r} is none of prompts, all"
      )
    if self.remat not in ("auto", "none", "dots", "full"):
      raise ValueError(
        f"learner.remat={self.remat!r} is none of auto, none, dots, full"
      )
    rank, layers = self.critic_lora.rank, self.critic_layers
    if rank and self.critic_trunk == "own":
      raise ValueError(
        f"learner.critic_lora.rank={rank} adds adapters to the policy's "
        "layers, and learner.critic_trunk=own trains a copy of them: set "
        "learner.critic_trunk=policy"
      )
    copied = self.critic_trunk == "own" or rank
    if layers is not None and (layers < 1 or not copied):
      raise ValueError(
        f"learner.critic_layers={layers} must be at least 1, and is read only "
        "with learner.critic_trunk=own or learner.critic_lora.rank above 0"
      )
    for name in ("num_minibatches", "actor_epochs", "microbatch_rows"):
      if getattr(self, name) < 1:
        raise ValueError(f"learner.{name} must be at least 1")


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  """Budget of supervised training.

  Attributes:
    learning_rate: AdamW's, at its peak; linear warm-up and cosine decay.
    warmup_steps: Optimizer steps of the warm-up; the rate of the first is 0.
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
