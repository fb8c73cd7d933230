"""Writes the work of `run.py`: weights, conversations and their log-probs.

  python prepare.py FOLDER      (reads FOLDER/spec.json)

The weights are random and have the names of transformers' Llama, whose layers
compute what `models.transformer` does. Gains of the norms are drawn around 1,
so that a norm in the wrong place shows.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import ours
import work as work_lib

from steppo_jax import trees
from steppo_jax.models import transformer
from steppo_jax.models.formats import weights


def draw_params(model, seed=0):
  """Random weights, the gains of norms included."""
  params = transformer.init(model, jax.random.key(seed))
  keys = iter(jax.random.split(jax.random.key(seed + 1), 3))
  vary = lambda x: (
    x * jax.random.uniform(next(keys), x.shape, minval=0.7, maxval=1.3)
  )
  flat = {
    name: vary(leaf) if name.endswith("norm/scale") else leaf
    for name, leaf in trees.flatten(params).items()
  }
  return jax.device_get(trees.unflatten(flat))


def llama_weights(params):
  """Our parameters by the names of transformers' Llama; kernels transposed."""
  layers = params["layers"]
  named = {
    "model.embed_tokens.weight": params["embed"]["embedding"],
    "model.norm.weight": params["final_norm"]["scale"],
  }
  for i in range(len(layers["q"]["kernel"])):
    lead = f"model.layers.{i}"
    for ours_name, theirs in (
      ("attention_norm", "input_layernorm"),
      ("mlp_norm", "post_attention_layernorm"),
    ):
      named[f"{lead}.{theirs}.weight"] = layers[ours_name]["scale"][i]
    for name in ("q", "k", "v", "o"):
      kernel = layers[name]["kernel"][i]
      named[f"{lead}.self_attn.{name}_proj.weight"] = kernel.T
    for name in ("gate", "up", "down"):
      kernel = layers[name]["kernel"][i]
      named[f"{lead}.mlp.{name}_proj.weight"] = kernel.T
  return {name: np.ascontiguousarray(x) for name, x in named.items()}


def llama_config(model):
  """config.json of transformers for the same sizes."""
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": model.width,
    "intermediate_size": model.mlp_width,
    "num_hidden_layers": model.num_layers,
    "num_attention_heads": model.num_heads,
    "num_key_value_heads": model.num_kv_heads,
    "head_dim": model.head_dim,
    "vocab_size": model.vocab_size,
    "rms_norm_eps": model.norm_eps,
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": model.rope_theta,
    },
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "dtype": "float32",
  }


def write_model(folder, model, params):
  """The model folder, as `from_pretrained` reads it, and our own file."""
  import safetensors.numpy

  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(llama_config(model), indent=2))
  safetensors.numpy.save_file(
    llama_weights(params), folder / "model.safetensors", {"format": "pt"}
  )
  # Beside the folder: loaders take every file in it.
  weights.save_params(folder.parent / ours.PARAMS_NAME, params, {})


def main():
  folder = pathlib.Path(sys.argv[1])
  spec = json.loads((folder / "spec.json").read_text())
  sizes = spec["update"]
  model = ours.model_of(spec)
  params = draw_params(model)
  write_model(folder / "model", model, params)
  rng = np.random.default_rng(1)
  mask = work_lib.sampled_mask(
    sizes["turns"], sizes["observe"], sizes["sample"]
  )
  n = sizes["trajectories"]
  tokens = rng.integers(1, model.vocab_size, (n, len(mask))).astype(np.int32)
  reward = rng.normal(size=n).astype(np.float32)
  # GRPO's advantage of one group; ours is computed by the learner itself.
  advantage = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-6)
  arrays = {
    "tokens": tokens,
    "sampled": mask,
    "behaviour_logp": np.zeros((n, mask.sum()), np.float32),
    "reference_logp": np.zeros((n, mask.sum()), np.float32),
    "advantage": advantage.astype(np.float32),
    "reward": reward,
  }
  np.savez(folder / "work.npz", **arrays)
  logp = ours.Ours(work_lib.Work(folder)).logprobs()
  # As if sampled by slightly older weights: some ratios leave the clip.
  noise = rng.normal(0, 0.15, logp.shape).astype(np.float32)
  arrays |= {"reference_logp": logp, "behaviour_logp": logp + noise}
  np.savez(folder / "work.npz", **arrays)


if __name__ == "__main__":
  main()
