"""The arithmetic of the predictions, by hand on a model of round numbers."""

import dataclasses

import pytest
import tpu_tools

from steppo_jax.models import presets, transformer
from steppo_jax.models.config import ModelConfig

roofline = tpu_tools.load("roofline")
# q and o 10 x 8, k and v 10 x 4, three of 10 x 5: 160 + 80 + 150 = 390 a layer.
MODEL = ModelConfig(
  vocab_size=100, width=10, num_layers=2, num_heads=4, num_kv_heads=2,
  head_dim=2, mlp_width=5,
)  # fmt: skip
CHIP = roofline.Chip(flops=1e4, bandwidth=1e3, memory=1e5)


def test_weights_are_counted_as_the_decoder_has_them():
  assert roofline.matmul_weights(MODEL) == 780
  assert roofline.logit_weights(MODEL) == 1000
  model = presets.get("qwen3_1_7b")
  params = transformer.abstract_params(model)
  norms = sum(
    x.size for x in (
      params["final_norm"]["scale"],
      *(params["layers"][n]["scale"] for n in params["layers"] if "norm" in n),
    )
  )  # fmt: skip
  counted = roofline.matmul_weights(model) + roofline.logit_weights(model)
  assert transformer.num_params(params) == counted + norms


def test_a_forward_pass_costs_two_flops_a_weight_and_its_attention():
  # 2 * 780 + 2 layers * 4 * 3 tokens * 4 heads * 2
  assert roofline.forward_flops(MODEL, 3, 0.0) == 1560 + 192
  # and 2 * 1000 * 0.5 for the logits of every other token
  assert roofline.forward_flops(MODEL, 3, 0.5) == 1560 + 192 + 1000


def test_decoding_waits_for_memory_or_for_products():
  # Keys and values: 2 bytes * 2 * 2 layers * 2 heads * 2 = 32 a token.
  assert roofline.kv_bytes(MODEL) == 32
  # One slot: (2 * 1780 + 3 * 32) bytes at 500 bytes/s.
  seconds, bound = roofline.decode_step(MODEL, CHIP, 1, 3, 1.0, 0.5)
  assert (seconds, bound) == (pytest.approx(3656 / 500), "memory")
  # 100 slots: 100 * (1752 + 2000) FLOPs at 2e3 a second.
  seconds, bound = roofline.decode_step(MODEL, CHIP, 100, 3, 0.2, 0.5)
  assert (seconds, bound) == (pytest.approx(375_200 / 2e3), "compute")


def test_an_update_adds_up():
  work = roofline.Work(
    episodes=4, steps=2, first_prompt=10, new_prompt=5, response=5
  )
  assert (work.length, work.sampled, work.stored) == (30, 40, 120)
  found = roofline.predict(MODEL, work, CHIP, chips=2, mfu=0.5, use=0.5)
  # (90,000 - 3,560) / (30 * 32) = 90 fit; 4 episodes on 2 chips need 2 each.
  assert found.slots == 2
  # A token of each slot: (3560 + 2 * 15 * 32) / 500 s by memory, and
  # 2 * (1560 + 960 + 2000) / 5000 s by products; 40 tokens in fours.
  assert found.decode_s == pytest.approx(10 * 4520 / 500)
  assert found.decode_tokens == pytest.approx(2 / (4520 / 500))
  # 80 prompt tokens at 2520 FLOPs on two chips of 5000.
  assert found.prefill_s == pytest.approx(80 * 2520 / 10_000)
  # 1 + 2 * 4 passes without logits, 1 + 4 with those of a third of the tokens.
  flops = 9 * 2520 + 5 * (2520 + 2000 / 3)
  assert found.learn_s == pytest.approx(120 * flops / 10_000)
  assert found.train_tokens == pytest.approx(10_000 / flops / 2)
  assert found.update_s == pytest.approx(
    found.decode_s + found.prefill_s + found.learn_s
  )


def test_a_chip_without_room_is_said_to_have_none(capsys):
  small = CHIP._replace(memory=4000.0)
  work = dataclasses.replace(roofline.PAPER["hotpotqa"], episodes=1)
  assert roofline.predict(MODEL, work, small, chips=1, mfu=0.5, use=0.5) is None
  assert roofline.main(["--chips", "8"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("PREDICTIONS, not measurements: 8 chips")
  for name in (*roofline.PAPER, *roofline.MODELS, *roofline.CHIPS):
    assert name in out
