"""What config.json says, leaves out and says twice, family by family."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.models import presets, rotary
from steppo_jax.models.config import ModelConfig, RopeScaling
from steppo_jax.models.formats import hf_config

SIZES = {
  "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
  "intermediate_size": 48,
}  # fmt: skip
QWEN = SIZES | {"model_type": "qwen3", "rope_theta": 1e6}
GEMMA = SIZES | {
  "model_type": "gemma3_text", "sliding_window": 9, "num_hidden_layers": 7,
}  # fmt: skip
SMOL = SIZES | {"model_type": "smollm3"}
OLMO = SIZES | {"model_type": "olmo3"}
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {
  "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32
}  # fmt: skip
LONG = {
  "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
  "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (QWEN | {"model_type": "mamba"}, "model_type 'mamba' is not known"),
    (QWEN | {"model_type": "gemma4_text"}, "layers of two head widths"),
    (QWEN | {"model_type": "qwen3_5_text"}, "gated delta net"),
    (QWEN | {"model_type": "phi3"}, "qkv_proj"),
    (QWEN | {"model_type": "gemma2"}, "attn_logit_softcapping"),
    ({}, "model_type is missing"),
    (QWEN | {"model_type": "gemma3"}, "the text model inside"),
    ({k: v for k, v in QWEN.items() if k != "hidden_size"},
     "hidden_size is missing"),
    (QWEN | {"vocab_size": "96"}, "vocab_size='96' must be a number"),
    (QWEN | {"vocab_size": 0}, "vocab_size=0 must be above 0"),
    (QWEN | {"num_key_value_heads": 3},
     "heads=4 is not a multiple of num_key_value_heads=3"),
    (QWEN | {"head_dim": None}, "head_dim=None must be a number"),
    (SIZES | {"model_type": "llama", "head_dim": None, "hidden_size": 33},
     "head_dim is missing"),
    (QWEN | {"head_dim": 15}, "head_dim=15 must be even"),
    (QWEN | {"hidden_act": "tanh"}, "hidden_act='tanh'"),
    (QWEN | {"tie_word_embeddings": None}, "tie_word_embeddings=None"),
    (QWEN | {"mlp_bias": True}, "mlp_bias=True is not read for qwen3"),
    (QWEN | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
     "rope_type='yarn' misses original_max_position_embeddings"),
    (QWEN | {"rope_scaling": {"type": "llama3", "factor": 4.0}},
     "misses low_freq_factor, high_freq_factor, original_max_position_emb"),
    (QWEN | {"rope_scaling": {"type": "linear", "factor": 0}},
     "factor=0 must be a number above 0"),
    (QWEN | {"rope_scaling": {"type": "linear", "factor": "2"}},
     "factor='2' must be a number"),
    (QWEN | {"rope_scaling": {"type": "dynamic", "factor": 2}}, "'dynamic'"),
    (QWEN | {"rope_scaling": LONG}, "long_factor"),
    (QWEN | {"rope_scaling": LONG, "max_position_embeddings": 32},
     "long_factor"),
    (QWEN | {"rope_parameters": {"rope_type": "mrope"}}, "rope_type='mrope'"),
    (QWEN | {"rope_parameters": {"partial_rotary_factor": 0.5}},
     "partial_rotary_factor=0.5"),
    (QWEN | {"rope_parameters": {"full_attention": LINEAR}}, "by layer type"),
    (QWEN | {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 1e4}},
     "rope_theta=10000.0 would become 1000000.0"),
    (QWEN | {"rope_scaling": YARN, "original_max_position_embeddings": 64},
     "original_max_position_embeddings is 64, and 32"),
    (QWEN | {"use_sliding_window": True, "max_window_layers": 1,
             "sliding_window": None, "layer_types": ["sliding_attention"] * 2},
     "sliding_window is missing"),
    (QWEN | {"layer_types": ["sliding_attention"] * 2},
     "sliding_window is missing"),
    (QWEN | {"model_type": "llama", "use_sliding_window": True},
     "use_sliding_window=True"),
    (QWEN | {"model_type": "mistral", "layer_types": ["full_attention"] * 2},
     "layer_types are not read for mistral"),
    (SMOL | {"layer_types": ["sliding_attention"] * 2, "sliding_window": 4},
     "use_sliding_window=None"),
    (SMOL | {"no_rope_layers": [1]}, "1 no_rope_layers for"),
    (GEMMA | {"layer_types": ["full_attention"]}, "1 layer_types for"),
    (GEMMA | {"layer_types": ["chunked_attention"] * 7}, "chunked_attention"),
    (GEMMA | {"_sliding_window_pattern": 2}, "_sliding_window_pattern=2"),
    (GEMMA | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50"),
    (GEMMA | {"use_bidirectional_attention": True}, "bidirectional"),
    (GEMMA | {"rope_parameters": LINEAR}, "must be by layer type"),
    (GEMMA | {"rope_scaling": {"type": "linear", "factor": 8.0}},
     "call it rope_type"),
    (OLMO | {"rope_parameters": {"full_attention": YARN | {"truncate": False}}},
     "truncate=False"),
  ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_explained(config, message):
  with pytest.raises(ValueError, match=message):
    hf_config.from_config(config)


# By family, what transformers 5.24.0 has where a file of the sizes above says
# nothing: its class of configurations.
ABSENT = {
  "llama": dict(rope_theta=1e4, num_kv_heads=4, head_dim=8, tied=False),
  "mistral": dict(num_kv_heads=8, windows=(4096,) * 8, tied=False),
  "qwen2": dict(rope_theta=1e4, windows=(), qkv_bias=True, o_bias=False),
  "qwen3": dict(head_dim=128, num_kv_heads=32, norm_eps=1e-6),
  "gemma3_text": dict(
    rope_theta=1e6, local_rope_theta=1e4, head_dim=256, num_kv_heads=4,
    query_scale=1 / 16, windows=(4096,) * 5 + (0,) + (4096,) * 2, tied=True,
    activation="gelu_tanh", softcap=None,
  ),
  "smollm3": dict(
    rope_theta=2e6, num_kv_heads=4, tied=True, windows=(),
    unrotated=(False, False, False, True) * 2,
  ),
  "olmo2": dict(norm_eps=1e-5, num_kv_heads=4, rope_theta=1e4),
  "olmo3": dict(
    norm_eps=1e-5, rope_theta=5e5, local_rope_theta=5e5,
    windows=(4096, 4096, 4096, 0) * 2,
  ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", ABSENT)
def test_what_a_file_leaves_out_is_what_its_family_means(model_type):
  heads = max(ABSENT[model_type].get("num_kv_heads", 4), 4)
  sizes = {
    "model_type": model_type, "vocab_size": 96, "hidden_size": 8 * heads,
    "num_attention_heads": heads, "num_hidden_layers": 8,
    "intermediate_size": 48,
  }  # fmt: skip
  if "num_kv_heads" not in ABSENT[model_type]:
    sizes["num_key_value_heads"] = 2
  found = hf_config.from_config(sizes)
  for name, value in ABSENT[model_type].items():
    assert getattr(found, name) == value, name
  plain = hf_config.from_config(
    {k: v for k, v in sizes.items() if k != "num_attention_heads"}
    | {"hidden_size": 256}
  )
  heads = {"gemma3_text": 8, "smollm3": 16}.get(model_type, 32)
  assert plain.num_heads == heads


def test_older_spellings_mean_the_same():
  old = hf_config.from_config(
    GEMMA
    | {
      "rope_scaling": {"rope_type": "linear", "factor": 8.0},
      "rope_local_base_freq": 5e3,
      "sliding_window_pattern": 3,
    }
  )
  assert old.local_rope_theta == 5e3
  assert old.rope_theta == 1e6
  assert old.rope_scaling.factor == 8.0
  assert old.windows == (9, 9, 0, 9, 9, 0, 9)
  assert hf_config.from_config(hf_config.to_config(old)) == old
  half = QWEN | {"use_sliding_window": True, "max_window_layers": 1}
  found = hf_config.from_config(half | {"sliding_window": 5})
  assert found.windows == (0, 5)
  # Older files of Phi and Qwen call it `type`.
  typed = {"type": "yarn"} | {k: v for k, v in YARN.items() if "type" not in k}
  assert hf_config.from_config(QWEN | {"rope_scaling": typed}) == (
    hf_config.from_config(
      QWEN | {"rope_parameters": YARN | {"rope_theta": 1e6}}
    )
  )


def test_a_scaling_beside_rope_parameters_replaces_it():
  both = QWEN | {
    "rope_parameters": YARN | {"rope_theta": 1e6}, "rope_scaling": LINEAR,
  }  # fmt: skip
  found = hf_config.from_config(both)
  assert found.rope_scaling == RopeScaling("linear", 2.0)
  assert found.rope_theta == 1e6
  # An empty one does not; in Gemma 3 it is merged into that of full layers.
  found = hf_config.from_config(both | {"rope_scaling": {}})
  assert found.rope_scaling.kind == "yarn"
  two = {"full_attention": {"rope_theta": 5e4}, "sliding_attention": YARN}
  found = hf_config.from_config(
    GEMMA | {"rope_parameters": two, "rope_scaling": LINEAR}
  )
  assert (found.rope_theta, found.rope_scaling.kind) == (5e4, "linear")
  assert found.local_rope_scaling.kind == "yarn"


def slow_yarn(half, theta, factor, context, fast=32, slow=1):
  """Frequency by frequency, from equations 17 to 23 of arXiv:2309.00071."""
  turns_at = lambda turns: (
    half * math.log(context / (2 * math.pi * turns)) / math.log(theta)
  )
  low = max(math.floor(turns_at(fast)), 0)
  high = min(math.ceil(turns_at(slow)), 2 * half - 1)
  found = []
  for i in range(half):
    base = theta ** (-i / half)
    divided = min(max((i - low) / (high - low), 0), 1)
    found.append(base * (1 - divided) + base / factor * divided)
  return found


def test_yarn_divides_slow_frequencies_and_sharpens_scores():
  found = hf_config.from_config(
    QWEN | {"head_dim": 64, "rope_scaling": YARN | {"factor": 8.0}}
  )
  np.testing.assert_allclose(
    rotary.frequencies(found, local=False),
    slow_yarn(32, 1e6, 8.0, 32),
    rtol=1e-5,
  )
  assert found.rope_scaling.attention_factor == 0.1 * math.log(8) + 1
  given = YARN | {"mscale": 2.0, "mscale_all_dim": 1.0}
  found = hf_config.from_config(QWEN | {"rope_scaling": given})
  ratio = (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
  assert found.rope_scaling.attention_factor == ratio
  one = YARN | {"attention_factor": 1.25}
  assert (
    hf_config.from_config(
      QWEN | {"rope_scaling": one}
    ).rope_scaling.attention_factor
    == 1.25
  )


def test_one_set_of_long_factors_divides_each_frequency():
  even = LONG | {"long_factor": LONG["short_factor"], "factor": 4.0}
  even["short_factor"] = even["long_factor"] = [1.0] * 4 + [3.0] * 4
  found = hf_config.from_config(QWEN | {"rope_scaling": even})
  plain = dataclasses.replace(found, rope_scaling=None)
  np.testing.assert_allclose(
    rotary.frequencies(plain, local=False)
    / rotary.frequencies(found, local=False),
    even["short_factor"],
    rtol=1e-6,
  )
  assert found.rope_scaling.attention_factor == math.sqrt(
    1 + math.log(4) / math.log(32)
  )
  # Without a factor it is the ratio of the lengths.
  del even["factor"]
  found = hf_config.from_config(
    QWEN | {"rope_scaling": even, "max_position_embeddings": 32}
  )
  assert found.rope_scaling.attention_factor == 1.0
  with pytest.raises(ValueError, match="max_position_embeddings"):
    hf_config.from_config(QWEN | {"rope_scaling": even})


def test_layers_with_a_window_are_scaled_like_the_others_in_qwen():
  found = hf_config.from_config(
    QWEN
    | {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5}
    | {"rope_scaling": LINEAR}
  )
  np.testing.assert_array_equal(
    rotary.frequencies(found, local=True),
    rotary.frequencies(found, local=False),
  )


def scalings(half):
  number = st.floats(0.1, 64.0)
  return st.one_of(
    st.none(),
    st.builds(RopeScaling, st.just("linear"), number),
    st.builds(
      RopeScaling, st.just("llama3"), number, st.floats(0.1, 2.0),
      st.floats(2.5, 9.0), st.integers(2, 10**6),
    ),
    st.builds(
      RopeScaling, st.just("yarn"), number,
      original_context=st.integers(2, 10**6), beta_fast=st.floats(9.0, 64.0),
      beta_slow=st.floats(0.5, 8.0), attention_factor=st.floats(0.5, 2.0),
    ),
    st.builds(
      RopeScaling, st.just("factors"),
      factors=st.lists(number, min_size=half, max_size=half).map(tuple),
      attention_factor=st.floats(0.5, 2.0),
    ),
  )  # fmt: skip


@st.composite
def models(draw):
  """A model of any family, with choices that the family can say."""
  row = hf_config._FAMILIES[draw(st.sampled_from(sorted(hf_config._FAMILIES)))]
  start = hf_config.from_config(
    SIZES | {"model_type": row.model_type, "num_hidden_layers": 4}
  )
  bias = "attention_bias" in row.biases and draw(st.booleans())
  windows = st.lists(st.sampled_from([0, 7]), min_size=4, max_size=4)
  windows = {
    "llama": st.just(()), "olmo2": st.just(()),
    "mistral": st.sampled_from([(), (7,) * 4]),
  }.get(start.family, windows)  # fmt: skip
  options = dict(
    tied=draw(st.booleans()), windows=draw(windows),
    norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
    rope_theta=draw(st.floats(10.0, 1e7)), rope_scaling=draw(scalings(8)),
    activation=draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu"])),
    o_bias=bias, qkv_bias=bias or start.family == "qwen2",
    mlp_bias="mlp_bias" in row.biases and draw(st.booleans()),
  )  # fmt: skip
  if start.local_rope_theta is not None:
    options["local_rope_theta"] = draw(st.floats(10.0, 1e7))
    options["local_rope_scaling"] = draw(scalings(8))
  if start.family == "smollm3":
    flags = st.lists(st.booleans(), min_size=4, max_size=4)
    options["unrotated"] = draw(flags)
  if start.family == "gemma3":
    options["softcap"] = draw(st.sampled_from([None, 30.0]))
    options["query_scale"] = draw(st.sampled_from([168, 256, 24])) ** -0.5
  return dataclasses.replace(start, **options)


@given(model=models())
def test_what_is_written_is_read_back(model):
  assert hf_config.from_config(hf_config.to_config(model)) == model
  # As the facts of a weights file keep it.
  assert ModelConfig(**dataclasses.asdict(model)) == model


JUNK = st.recursive(
  st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=2)
  | st.floats(allow_nan=True),
  lambda inner: st.lists(inner, max_size=3)
  | st.dictionaries(st.sampled_from(["rope_type", "factor"]), inner),
  max_leaves=4,
)  # fmt: skip
ROPE_KEYS = (
  "rope_type", "rope_theta", "factor", "original_max_position_embeddings",
  "attention_factor", "beta_fast", "mscale", "truncate", "short_factor",
  "long_factor", "low_freq_factor", "partial_rotary_factor", "type",
)  # fmt: skip


@given(model=models(), data=st.data())
def test_junk_is_refused_and_never_breaks_the_reader(model, data):
  config = hf_config.to_config(model)
  rope = config["rope_parameters"]
  if "full_attention" in rope:
    rope = rope[data.draw(st.sampled_from(sorted(rope)))]
  where, keys = data.draw(
    st.sampled_from(
      [(config, (*config, "rope_scaling", "layer_types")), (rope, ROPE_KEYS)]
    )
  )
  where[data.draw(st.sampled_from(sorted(keys)))] = data.draw(JUNK)
  try:
    found = hf_config.from_config(config)
  except ValueError:
    return
  assert isinstance(found, ModelConfig)
  assert hf_config.from_config(hf_config.to_config(found)) == found


def test_a_choice_that_a_family_cannot_say_is_not_lost():
  llama = presets.get("llama3_2_1b")
  for change in (
    {"query_scale": 0.5}, {"qkv_bias": True}, {"windows": (7,) * 16},
    {"rope_scaling": RopeScaling("linear", 2.0, attention_factor=1.5)},
  ):  # fmt: skip
    name = next(iter(change)).removeprefix("qkv")
    with pytest.raises(ValueError, match=f"cannot say .*{name}"):
      hf_config.to_config(dataclasses.replace(llama, **change))


@pytest.mark.parametrize("rotates", [True, False])
def test_a_layer_that_does_not_rotate_knows_no_positions(rotates):
  scaling = RopeScaling("linear", 2.0, attention_factor=1.5)
  model = ModelConfig(vocab_size=8, head_dim=8, rope_scaling=scaling)
  x = np.random.default_rng(0).normal(size=(1, 5, 2, 8)).astype(np.float32)
  turn = lambda flag: rotary.rotate(
    x, np.arange(5)[None], *rotary.of_layer(model, None, flag)
  )
  found = np.asarray(turn(rotates))
  if not rotates:
    np.testing.assert_array_equal(found, x)
    return
  np.testing.assert_array_equal(found, turn(None))
  assert not np.allclose(found[:, 1:], 1.5 * x[:, 1:], atol=0.1)
  np.testing.assert_allclose(
    np.linalg.norm(found, axis=-1), 1.5 * np.linalg.norm(x, axis=-1), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("text", "message"),
  [("{", "is not JSON"), ("[]", "no JSON object"), (None, "no model config")],
)
def test_a_configuration_file_that_cannot_be_read_is_named(
  tmp_path, text, message
):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    hf_config.from_config(tmp_path)
