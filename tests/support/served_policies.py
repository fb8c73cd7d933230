"""A policy and its sessions, served by a thread of this process."""

import contextlib
import dataclasses

import jax
import vocabularies

from steppo_jax.models import presets, transformer
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options
from steppo_jax.serving import answers, app, background, scheduler, sessions
from steppo_jax.tokenizer import loading

CONTEXT = 1024
NEW_TOKENS = 12


def tokenizer(folder, template=vocabularies.CHATML):
  """Of bytes, with a chat template."""
  inner = vocabularies.byte_level()
  vocabularies.write_folder(folder, inner, template=template)
  return loading.load(folder)


def engine(made_tokenizer, *, num_slots=4, cuts=False):
  """Random weights, far from flat, that all engines of a test share."""
  sizes = presets.get("nano", 410)
  made = engine_lib.SlotEngine(
    dataclasses.replace(sizes, num_ids=made_tokenizer.num_ids),
    options.SamplerConfig(
      num_slots=num_slots, prefill_lengths=(16, 256), refill=1, burst=4
    ),
    context=CONTEXT,
    max_new_tokens=NEW_TOKENS,
    end_of_turn_id=made_tokenizer.end_of_turn_id,
    seed=0,
    cuts=cuts,
  )
  params = jax.tree.map(
    lambda x: x * 1.5, transformer.init(sizes, jax.random.key(0))
  )
  made.set_params(params, 0)
  return made


def policy(made_tokenizer, made_engine):
  """A policy behind a scheduler."""
  return answers.Policy(
    "nano", made_tokenizer, scheduler.Scheduler(made_engine),
    context=CONTEXT, max_new_tokens=NEW_TOKENS,
  )  # fmt: skip


@contextlib.contextmanager
def served(made_policy, pool=None, *, api_key=None, limits=None):
  """The address of a server, which ends with the context.

  Args:
    made_policy: What it serves.
    pool: Where sessions go: a pool, the file of one, or None for no sessions.
    api_key: The server's.
    limits: Of sessions.
  """
  recorded = None
  if pool is not None:
    own = not isinstance(pool, pool_lib.Pool)
    opened = pool_lib.Pool(pool) if own else pool
    recorded = sessions.Sessions(made_policy, opened, limits=limits)
  server = background.Background(
    app.make(made_policy, api_key=api_key, sessions=recorded),
    background.listen("127.0.0.1", 0, key=None, option=""),
  )
  try:
    yield server.url
  finally:
    server.close()
    if pool is not None and own:
      opened.close()
