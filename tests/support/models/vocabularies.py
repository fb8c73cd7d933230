"""Small vocabularies in the forms that released models have."""

import json

import gguf_writing
import numpy as np
import pytest
import sentencepiece

tokenizers = pytest.importorskip(
  "tokenizers", reason="pip install 'steppo_jax[chat]'"
)

# A chat template in the manner of ChatML.
CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>")
# Control names of ChatML (Qwen, SmolLM), Llama 3, Gemma, Mistral and DeepSeek.
NAMES_OF_FIVE = (
  "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>",
  "<tool_call>", "</tool_call>", "<tool_response>", "<|eot_id|>", "<|eom_id|>",
  "<|begin_of_text|>", "<|start_header_id|>", "<|python_tag|>",
  "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "[INST]", "[/INST]",
  "[TOOL_CALLS]", "[ARGS]", "<｜User｜>", "<｜end▁of▁sentence｜>",
  "<｜tool▁call▁begin｜>",
)  # fmt: skip
CORPUS = [
  "the agent goes to the drawer and takes the apple from it\n",
  "a tool answers with text, numbers 1 2 345 and <tags> of its own\n",
  '{"name": "search", "arguments": {"query": "who is it?"}}\n',
] * 3


def byte_level(*, mark="<tool_response>"):
  """A BPE of bytes, as Qwen and Llama 3 have; `mark` is not special."""
  inner = tokenizers.Tokenizer(tokenizers.models.BPE())
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  inner.decoder = tokenizers.decoders.ByteLevel()
  inner.train_from_iterator(
    CORPUS,
    tokenizers.trainers.BpeTrainer(
      vocab_size=400, show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    ),
  )  # fmt: skip
  inner.add_special_tokens(list(SPECIAL))
  inner.add_tokens([mark, "</tool_response>"])
  return inner


def write_folder(folder, inner, *, template=None, **settings):
  """tokenizer.json and tokenizer_config.json as a checkpoint has them."""
  folder.mkdir(parents=True, exist_ok=True)
  inner.save(str(folder / "tokenizer.json"))
  facts = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|end|>"}}
  facts |= settings
  if template is not None:
    facts["chat_template"] = template
  (folder / "tokenizer_config.json").write_text(json.dumps(facts))
  return folder


def starts_with(inner, text):
  """Makes the package put one token in front of every text."""
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{text} $A", special_tokens=[(text, inner.token_to_id(text))]
  )
  return inner


def sentencepiece_model(folder):
  """A SentencePiece BPE with byte fallback, as Gemma has."""
  text = folder / "text"
  text.write_text("".join(CORPUS * 5))
  sentencepiece.SentencePieceTrainer.train(
    input=str(text), model_prefix=str(folder / "sp"), model_type="bpe",
    vocab_size=420, byte_fallback=True, add_dummy_prefix=False,
    remove_extra_whitespaces=False, normalization_rule_name="identity",
    pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2,
    control_symbols=["<start_of_turn>", "<end_of_turn>"],
  )  # fmt: skip
  return sentencepiece.SentencePieceProcessor(str(folder / "sp.model"))


def add_fields(writer, fields):
  """Writes what a file says of its vocabulary."""
  for key, value in fields.items():
    name = f"tokenizer.ggml.{key}"
    if isinstance(value, list):
      writer.add_array(name, value)
    elif isinstance(value, bool):
      writer.add_bool(name, value)
    elif isinstance(value, int):
      writer.add_uint32(name, value)
    else:
      writer.add_string(name, value)


def write_gguf(path, fields, *, template=None):
  """A GGUF file of a vocabulary and one tensor."""
  import gguf

  writer = gguf.GGUFWriter(path, "llama")
  add_fields(writer, fields)
  if template is not None:
    writer.add_chat_template(template)
  writer.add_tensor("x", np.zeros(4, np.float32))
  gguf_writing.finish(writer)
  return path


def byte_level_fields(inner, pre):
  """What a GGUF file says of a byte-level vocabulary."""
  rules = json.loads(inner.to_str())
  added = {t["id"]: t["special"] for t in rules["added_tokens"]}
  tokens = [inner.id_to_token(i) for i in range(inner.get_vocab_size())]
  kinds = {True: 3, False: 4, None: 1}
  return {
    "model": "gpt2",
    "pre": pre,
    "tokens": tokens,
    "token_type": [kinds[added.get(i)] for i in range(len(tokens))],
    "merges": [" ".join(pair) for pair in rules["model"]["merges"]],
    "eos_token_id": inner.token_to_id("<|im_end|>"),
    "add_bos_token": False,
  }


def sentencepiece_fields(processor):
  """What a GGUF file says of a SentencePiece model."""
  n = len(processor)

  def kind(i):
    if processor.is_unknown(i):
      return 2
    if processor.is_control(i):
      return 3
    return 6 if processor.is_byte(i) else 1

  return {
    "model": "llama",
    "tokens": [processor.id_to_piece(i) for i in range(n)],
    "scores": [float(processor.get_score(i)) for i in range(n)],
    "token_type": [kind(i) for i in range(n)],
    "eos_token_id": processor.eos_id(),
    "bos_token_id": processor.bos_id(),
    "unknown_token_id": processor.unk_id(),
    "padding_token_id": processor.pad_id(),
    "add_bos_token": True,
  }
