"""Text from a model, token by token, for people who read it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from steppo_jax import types
from steppo_jax.models.config import ModelConfig
from steppo_jax.prompts import base
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options

_SESSION = "generate"


class Generator:
  """One conversation with a model, whose cache is kept between turns."""

  def __init__(
    self,
    model: ModelConfig,
    params: Any,
    tokenizer: types.Tokenizer,
    *,
    context: int,
    max_new_tokens: int,
    seed: int,
    tensor: int = 1,
  ):
    """Allocates the cache.

    Args:
      model: Sizes of the decoder.
      params: Its parameters.
      tokenizer: The model's.
      context: Tokens of the conversation, answers included.
      max_new_tokens: Longest answer.
      seed: Root of what is drawn.
      tensor: Devices that share the model.

    Raises:
      ValueError: the tokenizer has more ids than the model, or the model or
        the devices cannot be split so.
    """
    if tokenizer.num_ids > model.vocab_size:
      raise ValueError(
        f"the tokenizer has {tokenizer.num_ids} ids and the model "
        f"{model.vocab_size}: take the model's own tokenizer"
      )
    self._tokenizer = tokenizer
    self._max_new_tokens = max_new_tokens
    self._turn = 0
    # Runs of a prompt are whole powers of two, up to its length.
    lengths = [size for size in (16, 64, 256, 1024) if size <= context]
    self._engine = engine_lib.SlotEngine(
      dataclasses.replace(model, num_ids=tokenizer.num_ids),
      options.SamplerConfig(
        num_slots=1,
        prefill_lengths=tuple(lengths) or (8,),
        burst=1,
        tensor=tensor,
      ),
      context=max(context, 8),
      max_new_tokens=max_new_tokens,
      end_of_turn_id=tokenizer.end_of_turn_id,
      seed=seed,
    )
    self._engine.set_params(params, 0)
    self.response_ids = np.zeros(0, np.int32)

  def stream(self, prompt_ids: np.ndarray, temperature: float) -> Iterator[str]:
    """Answers a prompt, in pieces of text as they come.

    Pieces are whole characters. `response_ids` holds the answer afterwards.

    Args:
      prompt_ids: [P] int32, all of it; what is in the cache is not read again.
      temperature: Of the softmax; 0 takes the most likely token.

    Raises:
      ValueError: the prompt is empty, or does not fit the context.
    """
    request = types.Request(
      _SESSION, prompt_ids, (self._turn,), self._max_new_tokens, temperature,
      self._tokenizer.stop_ids,
    )  # fmt: skip
    self._engine.submit([request])
    self._turn += 1
    shown, done = "", []
    while not done:
      done = self._engine.poll()
      if done:
        ids = done[0][1].response_ids
      else:
        ids, _ = self._engine.so_far()[_SESSION]
      self.response_ids = ids
      shown_ids = base.without_end(self._tokenizer.stop_ids, ids)
      text = self._tokenizer.decode(shown_ids)
      if not done:
        # The last character may have bytes to come.
        text = text.rstrip("\ufffd")
      if len(text) > len(shown):
        yield text[len(shown) :]
        shown = text


def room(
  prompt: int, asked: int | None, limit: int | None, *, turns: bool
) -> tuple[int, int]:
  """Positions of the cache and tokens of an answer.

  Args:
    prompt: Tokens of the first prompt.
    asked: Tokens of an answer; None for 256, or as many as fit.
    limit: Tokens that the model was made for, None if not known.
    turns: Whether more prompts follow; the cache then has 4,096 positions or
      as many as the model.

  Raises:
    ValueError: prompt and answer do not fit the model.
  """
  answer = asked or 256
  if asked is None and limit is not None:
    answer = max(1, min(answer, limit - prompt))
  needed = prompt + answer
  if limit is not None and needed > limit:
    raise ValueError(
      f"a prompt of {prompt} tokens and an answer of {answer} exceed the "
      f"{limit} that the model was made for: shorten the prompt, or ask for "
      "fewer with --max-tokens"
    )
  if turns:
    needed = max(needed, min(limit or 4096, 4096))
  # Caches of few lengths, so that few programs are compiled.
  rounded = -(-needed // 64) * 64
  return min(rounded, limit or rounded), answer
