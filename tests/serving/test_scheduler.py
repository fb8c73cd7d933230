"""One engine for many: who is answered when the engine fails."""

import asyncio

import numpy as np
import pytest
import served_policies

from steppo_jax import types
from steppo_jax.serving import scheduler


async def _all(answer):
  return [piece async for piece in answer]


def test_who_was_answered_before_the_engine_failed_has_the_answer(tmp_path):
  engine = served_policies.engine(served_policies.tokenizer(tmp_path / "nano"))

  def so_far():
    raise OSError("the device is gone")

  engine.so_far = so_far
  made = scheduler.Scheduler(engine)
  ids = np.arange(5, 9, dtype=np.int32)
  short, long = (
    types.Request("", ids, (limit,), limit, 1.0, ()) for limit in (1, 8)
  )

  async def ask():
    both = asyncio.gather(
      _all(made.answer(short)), _all(made.answer(long)), return_exceptions=True
    )
    return await asyncio.wait_for(both, 60)

  found, error = asyncio.run(ask())
  made.close()
  assert found[-1].stop_reason == "length"
  assert sum(len(piece.ids) for piece in found) == 1
  with pytest.raises(RuntimeError, match="the device is gone"):
    raise error
