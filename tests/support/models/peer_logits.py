"""Runs in an environment with transformers and torch: logits of many models.

    python peer_logits.py FOLDER

Every folder in FOLDER holds a config.json. Where it holds a model.safetensors,
too, that checkpoint is loaded; otherwise a random model is made and saved so.
Its logits of the ids in `tokens` go to logits.safetensors, and with them how
far they are from those of the same model in float64. What transformers raises
goes to error.txt.
"""

import json
import pathlib
import sys
import traceback

import safetensors.torch
import torch
import transformers

LENGTH = 40


def tokens(vocab_size: int) -> torch.Tensor:
  """[1, LENGTH] ids; `families.peer_tokens` has the same."""
  return (torch.arange(LENGTH)[None] * 37 + 11) % vocab_size


def random_model(config: dict, seed: int):
  """A model whose weights, norms and biases are all random."""
  made = transformers.AutoConfig.for_model(**config)
  made._attn_implementation = "eager"
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(made).float()
  with torch.no_grad():
    for value in model.parameters():
      # Matrices large enough that attention and logits are far from flat.
      scale = 0.3 if value.ndim == 1 else 1.2 * value.shape[-1] ** -0.5
      value.add_(torch.randn_like(value) * scale)
  return model


def record(folder: pathlib.Path, seed: int) -> None:
  """Writes what transformers computes for one configuration."""
  weights = folder / "model.safetensors"
  if weights.exists():
    model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, attn_implementation="eager"
    )
  else:
    model = random_model(json.loads((folder / "config.json").read_text()), seed)
  ids = tokens(model.config.vocab_size)
  with torch.no_grad():
    logits = model.eval()(ids).logits[0]
  if not torch.isfinite(logits).all():
    raise ValueError("the logits are not finite")
  if not weights.exists():
    state = model.state_dict()
    if model.config.tie_word_embeddings:
      state.pop("lm_head.weight")
    state = {name: value.contiguous() for name, value in state.items()}
    safetensors.torch.save_file(state, weights)
  with torch.no_grad():
    exact = model.double()(ids).logits[0]
  rounding = (exact - logits).abs().max() / exact.abs().max()
  safetensors.torch.save_file(
    {"logits": logits.contiguous(), "rounding": rounding.reshape(1)},
    folder / "logits.safetensors",
  )


def main(root: str) -> None:
  """Every folder; prints the releases."""
  torch.set_num_threads(1)
  transformers.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  for seed, path in enumerate(sorted(pathlib.Path(root).glob("*/config.json"))):
    try:
      record(path.parent, seed)
    except Exception as error:
      last = traceback.extract_tb(error.__traceback__)[-1]
      text = f"{type(error).__name__}: {error} ({last.name})"
      (path.parent / "error.txt").write_text(text)
  print(f"transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
  main(sys.argv[1])
