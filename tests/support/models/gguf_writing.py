"""Models as GGUF has them: what a file says of sizes, and its tensors."""

import numpy as np

from steppo_jax import trees
from steppo_jax.models.formats import names


def add_sizes(writer, model):
  """Writes the sizes that every family has."""
  writer.add_block_count(model.num_layers)
  writer.add_embedding_length(model.width)
  writer.add_feed_forward_length(model.mlp_width)
  writer.add_head_count(model.num_heads)
  writer.add_head_count_kv(model.num_kv_heads)
  writer.add_key_length(model.head_dim)
  writer.add_layer_norm_rms_eps(model.norm_eps)
  writer.add_rope_freq_base(model.rope_theta)


def add(writer, architecture, keys):
  """Writes keys of an architecture by the type of their values."""
  for key, value in keys.items():
    key = f"{architecture}.{key}"
    if isinstance(value, list):
      writer.add_array(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    else:
      writer.add_uint32(key, value)


def tensors(model, params):
  """Our parameters by GGUF's names, turned and permuted as it has them."""
  found, flat = {}, trees.flatten(params)
  for row in names.table(model, gguf=True):
    leaf = np.asarray(flat[row.ours])
    stacked = row.ours.startswith("layers/")
    for layer, value in enumerate(leaf if stacked else [leaf]):
      if row.how in (names.TURNED, names.INTERLEAVED):
        value = value.T
      if row.how == names.INTERLEAVED:
        heads = value.shape[0] // model.head_dim
        value = value.reshape(heads, 2, model.head_dim // 2, -1)
        value = value.swapaxes(1, 2).reshape(-1, model.width)
      if row.how == names.WITH_OFFSET:
        value = value + 1
      found[row.theirs.format(layer)] = np.ascontiguousarray(value)
  return found


def finish(writer):
  """Writes all that was added, and closes the file."""
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
