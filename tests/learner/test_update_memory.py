"""Memory of the update: the vocabulary costs its embedding, not its logits."""

import dataclasses

import pytest
import update_memory

from steppo_jax.models import presets

MARGIN = 1.3


def peak(vocab_size, **options):
  """Peak of an update of Qwen3-0.6B on 8,192 tokens, and its embedding."""
  model = presets.get("qwen3_0_6b", vocab_size)
  model = dataclasses.replace(model, remat="full")
  return update_memory.peak(model, **options), 4 * vocab_size * model.width


@pytest.mark.slow
def test_a_vocabulary_of_152k_costs_adapters_its_embedding_alone():
  small, table = peak(8_192, rank=8)
  large, wide = peak(151_936, rank=8)
  assert large < MARGIN * (small + wide - table)


@pytest.mark.slow
def test_a_vocabulary_of_152k_costs_its_embedding_as_trained():
  # The table itself, its gradient, and two moments of Adam.
  small, table = peak(8_192)
  large, wide = peak(151_936)
  assert large < MARGIN * (small + 4 * (wide - table))
