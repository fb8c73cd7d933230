"""The engine of a run that samples with servers (`rollout.engine=http`)."""

import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

from steppo_jax import types
from steppo_jax.models import lora, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.pretrained import handed_out
from steppo_jax.pretrained import policy as pretrained_policy
from steppo_jax.processes import hosts as hosts_lib
from steppo_jax.rollout import agents as agents_lib
from steppo_jax.rollout.options import EngineConfig
from steppo_jax.sampler import hand_over
from steppo_jax.serving.engines import connection, engine, servers
from steppo_jax.training import config as config_lib


def make(
  config: config_lib.RunConfig,
  model: transformer.ModelConfig,
  tokenizer: types.Tokenizer,
  hosts: hosts_lib.Hosts,
) -> engine.HttpEngine:
  """The engine that the options describe.

  Args:
    config: The options of a run.
    model: Sizes of the decoder.
    tokenizer: Of its weights.
    hosts: The processes of the run: one.

  Raises:
    ValueError: an option does not fit, or a server does not fit the run.
    RuntimeError: no server answers.
  """
  options: EngineConfig = config.engines
  if not options.addresses:
    raise ValueError(
      "rollout.engine=http needs engines.addresses, such as http://HOST:8000"
    )
  if hosts.count > 1:
    raise ValueError(
      f"rollout.engine=http runs in one process, and the run has {hosts.count}"
    )
  key = os.environ.get(agents_lib.SECRET)
  made = [
    connection.Connection(one, key=key, seconds=options.seconds)
    for one in dict.fromkeys(options.addresses)
  ]
  if options.form == "steppo":
    facts = handed_out.facts(
      model, tokenizer, seed=config.seed, context=config.rollout.max_tokens,
      max_new_tokens=config.rollout.max_new_tokens,
    )  # fmt: skip
    pack = _Files()
    of = [servers.PolicyServer(one, facts) for one in made]
  else:
    pack = _Adapters(config, model)
    of = [
      servers.AdapterServer(
        one, options.form, model=options.model,
        context=config.rollout.max_tokens, slots=options.slots,
        stop_ids=(tokenizer.end_of_turn_id,),
        unknown=range(tokenizer.num_ids, model.vocab_size),
      )
      for one in made
    ]  # fmt: skip
  return engine.HttpEngine(of, pack, pack.forget)


class _Files:
  """Policies as files, in a folder of their own while there are any."""

  def __init__(self):
    self._folder: pathlib.Path | None = None

  def __call__(self, params: Any) -> servers.Package:
    if self._folder is None:
      self._folder = pathlib.Path(tempfile.mkdtemp(prefix="steppo-weights-"))
    path = self._folder / "next.safetensors"
    handed_out.write(path, params)
    with open(path, "rb") as file:
      name = hashlib.file_digest(file, "sha256").hexdigest()
    return servers.Package(path.rename(self._folder / name), name)

  def forget(self, package: servers.Package) -> None:
    if self._folder is None:
      return  # Two packages of the same weights are one file.
    package.path.unlink(missing_ok=True)
    if not any(self._folder.iterdir()):
      self._folder.rmdir()
      self._folder = None


class _Adapters:
  """Adapters in folders, as PEFT writes them."""

  def __init__(self, config: config_lib.RunConfig, model):
    self._config, self._model = config, model
    if not config.engines.adapters:
      raise ValueError(
        f"engines.form={config.engines.form} needs engines.adapters, a folder "
        "that this run and the servers both see under that name"
      )
    self._folder = pathlib.Path(config.engines.adapters)

  def __call__(self, params: Any) -> servers.Package:
    if not lora.has(params):
      raise ValueError(
        f"engines.form={self._config.engines.form} takes adapters alone: set "
        "learner.lora.rank, or serve the policy with engines.form=steppo"
      )
    name = f"steppo-{hand_over.mark(params)[:16]}"
    folder = self._folder / name
    pretrained_policy.save_adapters(
      folder, self._model, mesh_lib.to_host(params), self._config.weights,
      self._config.base,
    )  # fmt: skip
    return servers.Package(folder, name)

  def forget(self, package: servers.Package) -> None:
    shutil.rmtree(package.path, ignore_errors=True)
