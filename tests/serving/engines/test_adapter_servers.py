"""Servers that take adapters by name, as vLLM's does by its recorded contract.

No vLLM runs here: the server is ours.
"""

import contextlib
import dataclasses
import threading

import adapter_servers
import jax
import numpy as np
import pytest
import small_runs
import worlds

from steppo_jax import types
from steppo_jax.models import lora
from steppo_jax.models.formats import peft
from steppo_jax.models.options import LoraConfig
from steppo_jax.processes import hosts
from steppo_jax.rollout.options import EngineConfig
from steppo_jax.serving.engines import connection
from steppo_jax.serving.engines import servers as servers_lib
from steppo_jax.training import remote


def adapted(seed):
  """A policy whose adapters change what it says."""
  made = lora.add(worlds.policy(), LoraConfig(rank=2), jax.random.key(1))
  draw = lambda path, x: (
    0.5 * jax.random.normal(jax.random.key(seed), x.shape)
    if path[-1].key == "lora_b"
    else x
  )
  return jax.tree_util.tree_map_with_path(draw, made)


@contextlib.contextmanager
def engine_of(tmp_path, server, **changes):
  config = small_runs.small_config(tmp_path)
  how = {"form": "vllm", "adapters": str(tmp_path / "adapters"), "slots": 2}
  config = dataclasses.replace(
    config, engines=EngineConfig((server.url,), **how | changes)
  )
  made = remote.make(config, worlds.model(), worlds.tokenizer(), hosts.ALONE)
  with contextlib.closing(made):
    yield made


def requests(count=3):
  return [
    types.Request(
      f"s{n}", np.arange(5, 9 + n, dtype=np.int32), (0, 1, n), 8, 0.7
    )
    for n in range(count)
  ]


def answered(engine, asked):
  engine.submit(asked)
  found = {}
  while len(found) < len(asked):
    found |= {request.session: response for request, response in engine.poll()}
  return [found[one.session] for one in asked]


@pytest.mark.slow
def test_adapters_are_loaded_by_name_and_sampled_with(tmp_path):
  with (
    adapter_servers.serving() as server,
    engine_of(tmp_path, server) as engine,
  ):
    own = worlds.engine()
    for version, params in ((3, adapted(2)), (4, adapted(3))):
      engine.set_params(params, version)
      own.set_params(params, version)
      # The adapters before are there no more, on the server or on the disk.
      (name,) = server.adapters
      assert [p.name for p in (tmp_path / "adapters").iterdir()] == [name]
      for asked, found in zip(
        requests(), answered(engine, requests()), strict=True
      ):
        seed = server.asked[-1][1]["seed"]
        sent = [
          body for path, body in server.asked
          if path == "/v1/completions"
          and body["prompt"] == asked.prompt_ids.tolist()
        ][-1]  # fmt: skip
        seed = sent["seed"]
        assert (sent["top_p"], sent["top_k"]) == (1.0, -1)
        assert sent["model"] == name
        again = dataclasses.replace(asked, key=(seed >> 32, seed % 2**32))
        (want,) = own.generate([again])
        own.release(asked.session)
        np.testing.assert_array_equal(found.response_ids, want.response_ids)
        np.testing.assert_allclose(
          found.behaviour_logp, want.behaviour_logp, rtol=0, atol=1e-4
        )
        assert found.policy_version == version
        assert found.stop_reason == want.stop_reason
  assert not list((tmp_path / "adapters").iterdir())


def test_adapters_of_a_run_that_was_killed_are_loaded_anew(tmp_path):
  with adapter_servers.serving() as server:
    with engine_of(tmp_path / "one", server) as engine:
      engine.set_params(adapted(2), 0)
      left = dict(server.adapters)
    # A run that ends takes its adapters along; a killed one cannot.
    assert not server.adapters
    server.adapters |= left
    with engine_of(tmp_path / "two", server) as engine:
      engine.set_params(adapted(2), 0)
      assert list(server.adapters) == list(left)
      (answer,) = answered(engine, requests(1))
      assert answer.response_ids.size


def test_a_server_that_does_not_forget_holds_nobody_up(tmp_path, monkeypatch):
  monkeypatch.setattr(servers_lib, "_CLOSE_S", 0.2)
  ended = threading.Event()
  with adapter_servers.serving() as server:
    server.on_unload = ended.wait
    try:
      with engine_of(tmp_path, server, seconds=3600.0) as engine:
        engine.set_params(adapted(2), 0)
      assert server.adapters
      assert not list((tmp_path / "adapters").iterdir())
    finally:
      ended.set()


def test_rows_without_a_token_are_not_sampled(tmp_path):
  with adapter_servers.serving() as server:
    rows = worlds.model().vocab_size
    made = servers_lib.AdapterServer(
      connection.Connection(server.url, key=None, seconds=60.0), "vllm",
      model=None, context=64, slots=1, stop_ids=(),
      unknown=range(rows - 3, rows),
    )  # fmt: skip
    with contextlib.closing(made):
      made.connect()
      package = servers_lib.Package(tmp_path / "adapters", "a")
      peft.save(package.path, worlds.model(), adapted(2), base="base")
      made.send(package)
      made.use(package, 0)
      made.answer(requests(1)[0])
      assert server.asked[-1][1]["logit_bias"] == {
        str(i): -100.0 for i in range(rows - 3, rows)
      }
      server.change = changed(
        token_ids=[rows - 1], logprobs={"token_logprobs": [-1.0]}
      )
      with pytest.raises(RuntimeError, match="of which the tokenizer knows"):
        made.answer(requests(1)[0])


def changed(**changes):
  """Changes an answer's choice."""

  def change(found):
    found["choices"][0] |= changes
    return found

  return change


def without_logprobs(found):
  del found["choices"][0]["logprobs"]["token_logprobs"][-1]
  return found


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda found: found | {"model": "base"}, "sampled with 'base'"),
    (changed(token_ids=None), "cannot be read"),
    (changed(logprobs=None), "cannot be read"),
    (without_logprobs, "tokens with"),
    (changed(finish_reason="abort"), "ended by 'abort'"),
    (changed(prompt_token_ids=[1]), "read 1 tokens"),
    (changed(token_ids=[5], finish_reason="stop",
             logprobs={"token_logprobs": [-1.0]}), "ends no response of"),
    (changed(token_ids=[5], logprobs={"token_logprobs": [-9999.0]}),
     "log-probs that are none"),
    (changed(token_ids=[-5], logprobs={"token_logprobs": [-1.0]}),
     "token ids that are none"),
    (lambda found: [], "cannot be read"),
    (lambda found: "hello", "cannot be read"),
  ],
)  # fmt: skip
def test_an_answer_that_tells_something_else_is_an_error(
  tmp_path, change, message
):
  with (
    adapter_servers.serving() as server,
    engine_of(tmp_path, server) as engine,
  ):
    engine.set_params(adapted(2), 0)
    server.change = change
    kind = RuntimeError
    if "sampled with" in message:
      kind = servers_lib.WrongWeights
    with pytest.raises(kind, match=message):
      answered(engine, requests(1))


def test_whole_weights_are_refused(tmp_path):
  with (
    adapter_servers.serving() as server,
    engine_of(tmp_path, server) as engine,
    pytest.raises(ValueError, match="takes adapters alone"),
  ):
    engine.set_params(worlds.policy(), 0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"adapters": None}, "needs engines.adapters, a folder"),
    ({"model": "other"}, "not engines.model=other"),
  ],
)
def test_options_that_do_not_fit_are_told(tmp_path, changes, message):
  with (
    adapter_servers.serving() as server,
    pytest.raises(ValueError, match=message),
    engine_of(tmp_path, server, **changes),
  ):
    pass
