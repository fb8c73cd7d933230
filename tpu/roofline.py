"""Predict the speed of a run on TPUs from the chips' data sheets.

    python tpu/roofline.py [--mfu 0.4] [--bandwidth 0.7] [--chips 16]

Nothing here was measured: every number printed is a prediction, and says so.
It is meant to tell which part of an update will take the time, and which slice
to ask for. The model, for each chip:

    reading and training   seconds = FLOPs / (peak x MFU)
    decoding               seconds = max(bytes / (bandwidth x use),
                                         FLOPs / (peak x MFU)) a token

A forward pass costs 2 FLOPs a weight and token, and 4 c H D a layer for
attention over c tokens. A training pass costs 3 forward passes and, as layers
are computed again, a fourth. To decode one token for every slot of a replica,
all of its weights and the keys and values of every slot are read once.

What it leaves out, all of which makes runs slower: the time between chips and
hosts, environments, compilation, responses of different lengths (slots that
wait), padding, and saving. MFU and the use of bandwidth are assumptions.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from steppo_jax.models import presets
from steppo_jax.models.config import ModelConfig


class Chip(NamedTuple):
  """A data sheet: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, /tpu7x.

  As of 2026. A chip of TPU7x is two devices to JAX, each with half of this.
  """

  flops: float  # bfloat16 FLOP/s at peak
  bandwidth: float  # bytes/s of high-bandwidth memory
  memory: float  # bytes
  devices: int = 1  # that JAX makes of it
  clock: float | None = None  # Hz, where peak and units tell it


CHIPS = {
  "v5e": Chip(197e12, 819e9, 16e9, clock=1.5e9),
  "v5p": Chip(459e12, 2765e9, 95e9, clock=1.75e9),
  "v6e": Chip(918e12, 1638e9, 32e9, clock=1.75e9),
  "tpu7x": Chip(2307e12, 7380e9, 192e9, devices=2),
}


@dataclasses.dataclass(frozen=True)
class Work:
  """One update of the paper's setting.

  Episodes and the limit of steps are those of the public scripts
  (`docs/algorithms.md`); lengths in tokens are assumptions, as they depend on
  what the policy writes.

  Attributes:
    episodes: Episodes of an update.
    steps: Steps of an episode, all of the limit: an upper bound.
    new_prompt: Tokens that a step adds to the prompt (assumed).
    response: Tokens of a response (assumed).
    first_prompt: Tokens of the first prompt (assumed).
  """

  episodes: int
  steps: int
  first_prompt: int
  new_prompt: int
  response: int

  @property
  def length(self) -> int:
    """Tokens of a whole episode, each of them stored once."""
    return self.first_prompt + self.steps * (self.new_prompt + self.response)

  @property
  def sampled(self) -> int:
    """Tokens that are decoded in an update."""
    return self.episodes * self.steps * self.response

  @property
  def stored(self) -> int:
    """Tokens of an update, prompts and responses."""
    return self.episodes * self.length


PAPER = {
  "alfworld": Work(128, 20, 600, 60, 150),
  "webshop": Work(128, 15, 600, 400, 150),
  "hotpotqa": Work(256, 5, 400, 600, 200),
}
MODELS = ("qwen3_1_7b", "qwen3_4b")


def matmul_weights(model: ModelConfig) -> int:
  """Weights that every token is multiplied by, the table of logits aside."""
  heads = model.num_heads * model.head_dim
  keys = model.num_kv_heads * model.head_dim
  attention = model.width * (2 * heads + 2 * keys)
  return model.num_layers * (attention + 3 * model.width * model.mlp_width)


def logit_weights(model: ModelConfig) -> int:
  """Weights of the table that logits are made with."""
  return model.vocab_size * model.width


def forward_flops(model: ModelConfig, context: float, logits: float) -> float:
  """FLOPs of one token that sees `context`, a share `logits` with logits."""
  attention = 4 * context * model.num_heads * model.head_dim
  weights = matmul_weights(model) + logits * logit_weights(model)
  return 2 * weights + model.num_layers * attention


def kv_bytes(model: ModelConfig) -> int:
  """Bytes of the keys and values of one token, in bfloat16."""
  return 2 * 2 * model.num_layers * model.num_kv_heads * model.head_dim


class Prediction(NamedTuple):
  """Seconds of an update on all chips, and tokens a second and chip.

  `slots` is how many responses one chip decodes side by side, and `bound` is
  what decoding waits for, "memory" or "compute".
  """

  decode_s: float
  prefill_s: float
  learn_s: float
  slots: int
  bound: str
  decode_tokens: float
  train_tokens: float

  @property
  def update_s(self) -> float:
    return self.decode_s + self.prefill_s + self.learn_s


def decode_step(
  model: ModelConfig, chip: Chip, slots: int, context: float, mfu: float,
  use: float,
) -> tuple[float, str]:  # fmt: skip
  """Seconds for one token in each of a chip's slots, and what bounds them."""
  weights = 2 * (matmul_weights(model) + logit_weights(model))
  memory = weights + slots * context * kv_bytes(model)
  compute = slots * forward_flops(model, context, 1.0)
  by_memory = memory / (chip.bandwidth * use)
  by_compute = compute / (chip.flops * mfu)
  return max(by_memory, by_compute), (
    "memory" if by_memory >= by_compute else "compute"
  )


def predict(
  model: ModelConfig, work: Work, chip: Chip, *, chips: int, mfu: float,
  use: float,
) -> Prediction | None:  # fmt: skip
  """The prediction for weights that every chip holds whole while it samples.

  The learner trains the policy and a critic of the same size, both for one
  epoch but for the critic's two (`learner.options.LearnerConfig`), and reads
  values, log-probs under the reference and under the policy first.

  Returns:
    None where a chip does not hold the weights and one episode.
  """
  weights = 2 * (matmul_weights(model) + logit_weights(model))
  room = 0.9 * chip.memory - weights
  held = int(room // (work.length * kv_bytes(model)))
  slots = min(held, -(-work.episodes // chips))
  if slots < 1:
    return None
  seen = work.length / 2
  step, bound = decode_step(model, chip, slots, seen, mfu, use)
  speed = chip.flops * mfu
  read = work.stored - work.sampled
  share = work.sampled / work.stored
  forward = forward_flops(model, seen, share)
  value = forward_flops(model, seen, 0.0)
  # Values and reference before, the critic twice, the policy once.
  learn = work.stored * (value + forward + 2 * 4 * value + 4 * forward)
  learn_s = learn / (chips * speed)
  return Prediction(
    decode_s=work.sampled / (chips * slots) * step,
    prefill_s=read * forward_flops(model, seen, 0.0) / (chips * speed),
    learn_s=learn_s,
    slots=slots,
    bound=bound,
    decode_tokens=slots / step,
    train_tokens=work.stored / learn_s / chips,
  )


def table(chips: int, mfu: float, use: float) -> list[str]:
  """The predictions as lines of a table."""
  lines = [
    "setting | model | chip | slots a chip | decoding waits for | "
    "decoded tokens/s a chip | trained tokens/s a chip | decode s | "
    "prefill s | learn s | update s"
  ]
  for setting, work in PAPER.items():
    for name in MODELS:
      for kind, chip in CHIPS.items():
        found = predict(
          presets.get(name), work, chip, chips=chips, mfu=mfu, use=use
        )
        cells = "does not hold the weights and one episode"
        if found is not None:
          cells = (
            f"{found.slots} | {found.bound} | {found.decode_tokens:,.0f} | "
            f"{found.train_tokens:,.0f} | {found.decode_s:.1f} | "
            f"{found.prefill_s:.1f} | {found.learn_s:.1f} | "
            f"{found.update_s:.1f}"
          )
        lines.append(f"{setting} | {name} | {kind} | {cells}")
  return lines


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chips", type=int, default=16)
  parser.add_argument("--mfu", type=float, default=0.4)
  parser.add_argument("--bandwidth", type=float, default=0.7)
  args = parser.parse_args(argv)
  print(
    f"PREDICTIONS, not measurements: {args.chips} chips, assumed MFU "
    f"{args.mfu}, assumed use of memory bandwidth {args.bandwidth}"
  )
  print("\n".join(table(args.chips, args.mfu, args.bandwidth)))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
