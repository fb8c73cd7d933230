"""One engine for many: who is answered when the engine fails."""

import asyncio
import json

import agent_calls
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


@pytest.mark.parametrize(
  ("way", "message"),
  [
    ({"top_p": 0.5}, "samples from the whole softmax"),
    ({"stop_token_ids": [*range(40, 56)]}, "with the model's own 17 tokens"),
  ],
)
def test_a_request_that_is_refused_costs_no_slot(policy, way, message):
  """The prompts behind it are more than there are slots."""
  say = lambda ids, **more: {
    "token_ids": ids, "sampling_params": {"max_tokens": 1, **more},
  }  # fmt: skip
  with served_policies.served(policy) as url:
    ask = lambda *given, **more: agent_calls.send(
      f"{url}/inference/v1/generate", json=say(*given, **more)
    )
    for n in range(4):  # The refused one goes on in a slot, or takes a new one.
      assert ask([1, 2, n]).status_code == 200
      for ids in ([1, 2, n], [3, 4, n]):
        refused = ask(ids, **way)
        assert refused.status_code == 400, refused.text
        assert message in refused.json()["error"]["message"]
    for n in range(9):
      assert ask([5, n]).status_code == 200
    assert agent_calls.get(f"{url}/health").json() == {"status": "ok"}


def test_who_has_hung_up_keeps_nobody_from_waiting(policy, monkeypatch):
  """At most one request waits; the one before it was given up."""
  gate = policy.scheduler
  monkeypatch.setattr(gate, "_max_waiting", 1)
  before = gate.counts.copy()
  ids = np.arange(5, 9, dtype=np.int32)
  request = types.Request("", ids, (1,), 4, 1.0, ())

  async def ask():
    with gate.held():
      for _ in range(3):
        asked = asyncio.create_task(_all(gate.answer(request)))
        await asyncio.sleep(0.01)
        assert gate.load == {"running": 0, "waiting": 1}
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
      assert gate.load == {"running": 0, "waiting": 0}
    return await asyncio.wait_for(_all(gate.answer(request)), 60)

  assert asyncio.run(ask())[-1].stop_reason
  counts = gate.counts - before
  assert (counts["cancelled"], counts["refused"]) == (3, 0)


def test_a_stream_that_fails_ends_with_a_whole_error(policy, monkeypatch):
  """Its client raises what it reads there, with type and parameter."""
  body = {"model": "nano", "messages": [agent_calls.user("a")], "stream": True}
  pieces = scheduler.Scheduler.answer

  async def broken(self, request):
    async for piece in pieces(self, request):
      # The first piece may hold all of a short answer.
      yield piece._replace(stop_reason=None)
      raise RuntimeError("the device is gone")

  monkeypatch.setattr(scheduler.Scheduler, "answer", broken)
  with served_policies.served(policy) as url:
    found = agent_calls.send(f"{url}/v1/chat/completions", json=body)
  *_, last = found.text.removeprefix("data: ").split("\n\ndata: ")
  assert json.loads(last)["error"] == {
    "message": "the device is gone", "type": "server_error", "param": None,
    "code": "server_error",
  }  # fmt: skip
