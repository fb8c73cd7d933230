"""Servers of a tiny policy whose weights a run may change, in this process."""

import contextlib
import dataclasses
import pathlib
import tempfile

import worlds

from steppo_jax.models import lora
from steppo_jax.pretrained import handed_out
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.serving import answers, app, background, scheduler
from steppo_jax.serving.engines import weights

KEY = "a secret"
CONTEXT = worlds.CONTEXT


@dataclasses.dataclass
class Served:
  """A server of this process.

  Attributes:
    url: Its address.
    engine: What samples.
    weights: What changes its weights.
    policy: What is served.
    stop: Ends it.
  """

  url: str
  engine: engine_lib.SlotEngine
  weights: weights.Weights
  policy: answers.Policy
  stop: contextlib.ExitStack


def serve(*, params=None, seed=0, port=0, more=None) -> Served:
  """Starts one, with the programs of `worlds.engine`.

  Args:
    params: What it begins with; those of `worlds.policy` without.
    seed: Of its sampler.
    port: 0 takes a free one.
    more: Changes what clients have to agree with.
  """
  params = worlds.policy() if params is None else params
  tokenizer, model = worlds.tokenizer(), worlds.model()
  engine = worlds.engine(seed=seed, refill=1, burst=4)
  engine.set_params(params, 0)
  limits = {"context": CONTEXT, "max_new_tokens": worlds.ROLLOUT.max_new_tokens}
  policy = answers.Policy(
    "tiny", tokenizer, scheduler.Scheduler(engine), **limits
  )
  with contextlib.ExitStack() as stack:
    stack.callback(policy.scheduler.close)
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    base = lora.off(params)
    facts = handed_out.facts(model, tokenizer, seed=seed, **limits)
    changed = weights.Weights(
      engine, policy.scheduler,
      lambda path: handed_out.read(path, model, base),
      facts | (more or {}), folder, largest=handed_out.largest(model),
    )  # fmt: skip
    server = background.Background(
      app.make(policy, api_key=KEY, weights=changed),
      background.listen("127.0.0.1", port, key=KEY, option=""),
    )
    stack.callback(server.close)
    return Served(server.url, engine, changed, policy, stack.pop_all())


@contextlib.contextmanager
def serving(count=1, **how):
  """Some of them, which end with the context."""
  with contextlib.ExitStack() as stack:
    found = []
    for _ in range(count):
      found.append(serve(**how))
      stack.enter_context(found[-1].stop)
    yield found
