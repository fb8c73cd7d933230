"""The command `serve`: services over HTTP."""

import argparse
import contextlib
from collections.abc import Callable


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """
  serve = add("serve", _serve, "serve search and expand over HTTP")
  serve.add_argument("what", choices=("papers",))
  serve.add_argument(
    "--data-dir", help="folder of papers; a generated library without"
  )
  serve.add_argument("--host", default="127.0.0.1")
  serve.add_argument("--port", type=int, default=0, help="0 takes a free one")


def _serve(args, _) -> None:
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
