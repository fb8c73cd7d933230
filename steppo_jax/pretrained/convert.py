"""Models from one form into another, whole or not at all."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Literal

from steppo_jax import types
from steppo_jax.models.formats import hub, peft, tensor_files
from steppo_jax.pretrained import policy, sources
from steppo_jax.tokenizer import hf_tokenizer

Form = Literal["folder", "orbax", "weights", "peft"]

_TEXT_FILES = (
  "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
  "added_tokens.json", "chat_template.jinja", "generation_config.json",
  "tokenizer.model",
)  # fmt: skip


# Where a folder keeps chat templates beside the default one.
_TEMPLATES = "additional_chat_templates"


def convert(
  source: sources.Found,
  target: pathlib.Path,
  form: Form,
  *,
  dtype: Any = None,
  tokenizer: str | None = None,
  progress: Callable[[int, int], None] | None = None,
  like: sources.Found | None = None,
  base: str | None = None,
) -> None:
  """Writes a model in another form, with its tokenizer where it has one.

  Args:
    source: The model.
    target: Folder or file to make; must not exist.
    form: "folder" as Hugging Face writes it, "orbax" for a checkpoint,
      "weights" for a file that training starts from, "peft" for adapters
      alone.
    dtype: Of the parameters; None for the stored one, float32 for GGUF. Between
      folders each tensor keeps its own.
    tokenizer: Name or path, for models that have none beside them.
    progress: Called with (arrays done, arrays in all) while reading.
    like: A model of the same sizes, for checkpoints that do not name theirs;
      "weights" take its tokenizer where the checkpoint has none.
    base: What adapters are to name as the model they belong to; None for the
      source's, or for `like`.

  Raises:
    ValueError: the target exists, the source is broken, or it has no adapters
      to write; nothing is left.
    RuntimeError: a package is missing, or a checkpoint is broken.
  """
  if target.exists():
    raise ValueError(f"{target} exists: remove it or take another name")
  context = sources.sizes(source, like=like).context
  words = _tokenizer(source, tokenizer, like, needed=form == "weights")
  model, params = sources.load(
    source, dtype=dtype, progress=progress, like=like, merged=form != "peft"
  )
  if form == "weights":
    policy.save_policy(target, model, params, words, {})
    return
  new = target.with_name(target.name + ".new")
  if new.exists():  # of a conversion that was killed
    shutil.rmtree(new)
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    if form == "peft":
      of = source.base or like
      peft.save(new, model, params, base=base or (of and str(of.path)))
    elif form == "folder":
      hub.save(new, model, params, dtype=dtype or _types(source))
      _add(new / "config.json", context, words)
    else:
      sources.save_checkpoint(new, model, params, context)
    _write_tokenizer(_speaker(source), new, words)
    os.replace(new, target)
  finally:
    shutil.rmtree(new, ignore_errors=True)


def _tokenizer(source, name, like, *, needed) -> types.Tokenizer | None:
  try:
    return sources.tokenizer_of(source, name)
  except ValueError:
    # Checkpoints of runs and bare folders of weights may have none.
    if name is not None:
      raise
    if needed:
      if source.kind != "checkpoint" or like is None:
        raise
      return sources.tokenizer_of(like)
    bare = source.kind in ("checkpoint", "weights")
    folder = source.path if source.path.is_dir() else source.path.parent
    if bare or not (folder / "tokenizer.json").is_file():
      return None
    raise


def _add(path: pathlib.Path, context, words) -> None:
  """Facts that belong to the checkpoint and not to the decoder."""
  config = json.loads(path.read_text())
  if context is not None:
    config["max_position_embeddings"] = context
  if words is not None:
    stops = words.stop_ids
    config["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
    config["bos_token_id"] = words.bos_id
    config["pad_token_id"] = words.pad_id
  path.write_text(json.dumps(config, indent=1))


def _types(source: sources.Found):
  """The type of each tensor of a folder: of mixed ones each keeps its own."""
  if source.kind != "folder":
    return None
  stored = hub.stored_types(source.path)
  return {name: tensor_files.TYPES[kind] for name, kind in stored.items()}


def _speaker(source: sources.Found) -> sources.Found:
  """Whose tokenizer it is: that of the base where adapters bring none."""
  own = (source.path / "tokenizer.json").is_file()
  return source.base if source.kind == "adapter" and not own else source


def _write_tokenizer(source, folder: pathlib.Path, words) -> None:
  """The files of the source, or those that say what its own file said."""
  at = source.path
  beside = at.parent if at.name == sources.CHECKPOINTS else at
  if source.kind in ("folder", "checkpoint", "adapter"):
    for name in _TEXT_FILES:
      if (beside / name).is_file():
        shutil.copyfile(beside / name, folder / name)
    if (beside / _TEMPLATES).is_dir():
      shutil.copytree(beside / _TEMPLATES, folder / _TEMPLATES)
  elif isinstance(words, hf_tokenizer.HuggingFaceTokenizer):
    (folder / "tokenizer.json").write_text(words.description, encoding="utf-8")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= words.special
    template = words.chat_template
    if isinstance(template, Mapping):
      template = [{"name": n, "template": t} for n, t in template.items()]
    if template is not None:
      settings["chat_template"] = template
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
