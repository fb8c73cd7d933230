"""Runs in an environment with torch, transformers and peft: logits of adapters.

    python peer_peft.py FOLDER

Every folder in FOLDER holds a checkpoint "base". Where it holds an "adapter",
too, PEFT loads that; otherwise PEFT makes adapters of "lora.json", fills them
at random and saves them there. The logits of `ids.npy` go to logits.npy.
"""

import json
import pathlib
import sys
import warnings

import numpy as np
import peft
import torch
import transformers


def model_of(folder: pathlib.Path, seed: int):
  base = transformers.AutoModelForCausalLM.from_pretrained(
    folder / "base", dtype=torch.float32, attn_implementation="eager"
  )
  if (folder / "adapter").exists():
    # A tensor that is missing or left over is a warning, and a fault here.
    with warnings.catch_warnings():
      warnings.simplefilter("error", UserWarning)
      return peft.PeftModel.from_pretrained(base, folder / "adapter")
  config = json.loads((folder / "lora.json").read_text())
  made = peft.get_peft_model(base, peft.LoraConfig(**config))
  torch.manual_seed(seed)
  with torch.no_grad():
    for name, value in made.named_parameters():
      if "lora_" in name:
        value.copy_(torch.randn_like(value) * 0.2)
  made.save_pretrained(folder / "adapter")
  return made


def main(root: pathlib.Path) -> None:
  ids = torch.from_numpy(np.load(root / "ids.npy"))
  for seed, folder in enumerate(
    sorted(p for p in root.iterdir() if p.is_dir())
  ):
    with torch.no_grad():
      logits = model_of(folder, seed).eval()(ids).logits
    np.save(folder / "logits.npy", logits.numpy())
  print(
    f"torch {torch.__version__}, transformers {transformers.__version__}, "
    f"peft {peft.__version__}"
  )


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
