"""Vocabularies of GGUF files: splits without a name, columns cut short."""

import pytest
import vocabularies

from steppo_jax.tokenizer import loading

pytest.importorskip("gguf", reason="pip install 'steppo_jax[gguf]'")

# Merges that tell the splits apart, and what each text becomes.
MERGES = ["Ġ 1", "1 2", "12 3", "123 4", "Ġ !", "! !", "x !", "' s"]
DEFAULT = {
  "12345": ["123", "4", "5"],
  " 12": [" ", "12"],
  " !": [" ", "!"],
  "x!!": ["x", "!!"],
  "x's": ["x", "'", "s"],
}
GPT_2 = {
  "12345": ["1234", "5"],
  " 12": [" 1", "2"],
  " !": [" !"],
  "x!!": ["x", "!!"],
  "x's": ["x", "'s"],
}


def fields_of(inner):
  fields = vocabularies.byte_level_fields(inner, "default")
  old = [pair for pair in fields["merges"] if pair not in MERGES]
  fields["merges"] = MERGES + old
  for pair in MERGES:
    piece = pair.replace(" ", "")
    if piece not in fields["tokens"]:
      fields["tokens"].append(piece)
      fields["token_type"].append(1)
  return fields


@pytest.mark.parametrize(
  ("pre", "expected"),
  [("default", DEFAULT), (None, DEFAULT), ("gpt-2", GPT_2)],
)
def test_a_split_without_a_name_is_that_of_llama_cpp(tmp_path, pre, expected):
  fields = fields_of(vocabularies.byte_level())
  del fields["pre"]
  fields |= {} if pre is None else {"pre": pre}
  tokenizer = loading.load(vocabularies.write_gguf(tmp_path / "a.gguf", fields))
  for text, pieces in expected.items():
    ids = tokenizer.encode(text)
    assert [tokenizer.decode([i]) for i in ids] == pieces, text


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize(
  ("model", "key"),
  [("gpt2", "token_type"), ("llama", "token_type"), ("llama", "scores")],
)
def test_a_column_of_another_length_is_named(tmp_path, model, key, more):
  if model == "gpt2":
    fields = vocabularies.byte_level_fields(vocabularies.byte_level(), "gpt-2")
  else:
    fields = vocabularies.sentencepiece_fields(
      vocabularies.sentencepiece_model(tmp_path)
    )
  n = len(fields["tokens"])
  fields[key] = [*fields[key], fields[key][-1]][: n + more]
  path = vocabularies.write_gguf(tmp_path / "a.gguf", fields)
  message = rf"a\.gguf: tokenizer\.ggml\.{key} holds {n + more} for {n} tokens"
  with pytest.raises(ValueError, match=message):
    loading.load(path)
