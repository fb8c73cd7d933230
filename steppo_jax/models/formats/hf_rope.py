"""Rotations as `config.json` spells them, to our options and back.

Transformers 5 has one dict, `rope_parameters`; before it had `rope_theta`
beside `rope_scaling`, and Gemma 3 `rope_local_base_freq` for its layers with a
window. Gemma 3 and OLMo 3 have one dict for each type of layer. Where both
spellings stand in one file, what is taken is what transformers 5.24 takes, or
the file is refused because the two are at odds.
"""

import math
from collections.abc import Mapping
from typing import Any

from steppo_jax.models.config import ModelConfig, RopeScaling

# Families with one rotation for layers with a window and one for the others.
BY_LAYER_TYPE = ("gemma3", "olmo3")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_CONTEXT = "original_max_position_embeddings"
# What each type must say.
_NEEDED = {
  "linear": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor", _CONTEXT),
  "yarn": ("factor", _CONTEXT),
  "longrope": ("short_factor", "long_factor", _CONTEXT),
}


def read(
  config: Mapping[str, Any], family: str, *, theta: float
) -> dict[str, Any]:
  """Options of `ModelConfig` from a configuration.

  Args:
    config: The configuration.
    family: Of the model.
    theta: Base where none is said.

  Raises:
    ValueError: a rotation that is not known, changes with the length of the
      text, misses a number or is at odds with another; the field is named.
  """
  if family not in BY_LAYER_TYPE:
    found = _one(config, theta)
    return {
      "rope_theta": _number(found, "rope_theta"),
      "rope_scaling": _scaling(found, config),
    }
  full, local = _two(config, family, theta)
  return {
    "rope_theta": _number(full, "rope_theta"),
    "rope_scaling": _scaling(full, config, nested=True),
    "local_rope_theta": _number(local, "rope_theta"),
    "local_rope_scaling": _scaling(local, config, nested=True),
  }


def _object(config: Mapping[str, Any], key: str) -> dict[str, Any]:
  value = config.get(key)
  if value is None:
    return {}
  if not isinstance(value, Mapping):
    raise ValueError(f"{key}={value!r} must be an object")
  return dict(value)


def _one(config: Mapping[str, Any], theta: float) -> dict[str, Any]:
  """The rotation of a model whose layers all have the same."""
  scaling = _object(config, "rope_scaling")
  parameters = _object(config, "rope_parameters")
  # Transformers takes the whole of `rope_scaling` if a file has both.
  key = "rope_scaling" if scaling else "rope_parameters"
  found = scaling or parameters
  nested = [name for name, value in found.items() if isinstance(value, Mapping)]
  if nested:
    raise ValueError(f"{key} by layer type ({', '.join(nested)}) is not read")
  found.setdefault("rope_theta", config.get("rope_theta", theta))
  if scaling and parameters:
    lost = parameters.get("rope_theta", found["rope_theta"])
    if lost != found["rope_theta"]:
      raise ValueError(
        f"rope_scaling stands beside rope_parameters and replaces it, and so "
        f"rope_theta={lost!r} would become {found['rope_theta']!r}: write "
        "rope_theta into rope_scaling, or put all into rope_parameters"
      )
  return found


def _two(
  config: Mapping[str, Any], family: str, theta: float
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The rotations of full layers and of those with a window."""
  parameters = _object(config, "rope_parameters")
  odd = sorted(set(parameters) - {_FULL, _SLIDING})
  if odd:
    raise ValueError(
      f"rope_parameters of {family} must be by layer type, and has "
      f"{', '.join(odd)} beside {_FULL} and {_SLIDING}"
    )
  full, local = _object(parameters, _FULL), _object(parameters, _SLIDING)
  scaling = _object(config, "rope_scaling")
  if "type" in scaling and "rope_type" not in scaling:
    raise ValueError(
      f"rope_scaling of {family} says type={scaling['type']!r}, which "
      "transformers does not read there: call it rope_type"
    )
  if any(isinstance(value, Mapping) for value in scaling.values()):
    raise ValueError("rope_scaling by layer type is not read")
  full |= scaling
  full.setdefault("rope_theta", config.get("rope_theta", theta))
  # OLMo 3 gives the old `rope_theta` to its full layers alone.
  local_theta = theta
  if family == "gemma3":
    local_theta = config.get("rope_local_base_freq", 1e4)
  local.setdefault("rope_theta", local_theta)
  return full, local


def _number(found: Mapping[str, Any], key: str) -> float:
  value = found.get(key)
  real = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not real or not 0 < value < math.inf:
    raise ValueError(f"{key}={value!r} must be a number above 0")
  return float(value)


def _scaling(
  found: Mapping[str, Any], config: Mapping[str, Any], *, nested: bool = False
) -> RopeScaling | None:
  kind = found.get("rope_type", found.get("type", "default"))
  partial = found.get("partial_rotary_factor")
  if partial not in (None, 1):
    raise ValueError(f"partial_rotary_factor={partial!r} is not supported")
  if kind == "default":
    return None
  if kind == "dynamic":
    raise ValueError(
      "rope_type='dynamic' turns every token anew as a text grows, which keys "
      "that are kept cannot follow"
    )
  if not isinstance(kind, str) or kind not in _NEEDED:
    raise ValueError(
      f"rope_type={kind!r} is none of default, {', '.join(_NEEDED)}"
    )
  found = _with_context(found, config, nested)
  missing = [name for name in _NEEDED[kind] if found.get(name) is None]
  if missing:
    raise ValueError(f"rope_type={kind!r} misses {', '.join(missing)}")
  if kind == "longrope":
    return _longrope(found, config)
  options = {"factor": _number(found, "factor")}
  if kind != "linear":
    options["original_context"] = int(_number(found, _CONTEXT))
  if kind == "llama3":
    for name in ("low_freq_factor", "high_freq_factor"):
      options[name] = _number(found, name)
  if kind == "yarn":
    options |= _yarn(found, options["factor"], nested)
  return RopeScaling(kind, **options)


def _with_context(
  found: Mapping[str, Any], config: Mapping[str, Any], nested: bool
) -> dict[str, Any]:
  """The rotation with a context that stands beside it, as in Phi 3."""
  beside, inside = config.get(_CONTEXT), found.get(_CONTEXT)
  if beside is None or beside == inside:
    return dict(found)
  if inside is not None or nested:
    raise ValueError(
      f"{_CONTEXT} is {beside!r}, and {inside!r} in the rotation: give one"
    )
  return {**found, _CONTEXT: beside}


def _yarn(
  found: Mapping[str, Any], factor: float, nested: bool
) -> dict[str, Any]:
  mscale = lambda m: 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1
  options = {
    key: _number(found, key)
    for key in ("beta_fast", "beta_slow")
    if found.get(key)
  }
  if found.get("attention_factor") is not None:
    options["attention_factor"] = _number(found, "attention_factor")
  elif found.get("mscale") and found.get("mscale_all_dim"):
    above, below = (_number(found, f"mscale{x}") for x in ("", "_all_dim"))
    options["attention_factor"] = mscale(above) / mscale(below)
  else:
    options["attention_factor"] = mscale(1)
  truncate = found.get("truncate", True)
  if nested and not truncate:
    raise ValueError(
      f"truncate={truncate!r} is not read by transformers in a rotation of "
      "one layer type"
    )
  return options | {"truncate": bool(truncate)}


def _longrope(
  found: Mapping[str, Any], config: Mapping[str, Any]
) -> RopeScaling:
  """The one set of factors that holds for every length, if there is one."""
  context = int(_number(found, _CONTEXT))
  if found["short_factor"] != found["long_factor"]:
    # Not even where max_position_embeddings is no more than that: nothing
    # keeps a text from growing longer.
    raise ValueError(
      f"rope_type='longrope' has a long_factor that turns every token anew "
      f"beyond {_CONTEXT}={context}, which keys that are kept cannot follow"
    )
  if found.get("attention_factor") is not None:
    attention = _number(found, "attention_factor")
  else:
    if found.get("factor") is not None:
      factor = _number(found, "factor")
    else:
      factor = _number(config, "max_position_embeddings") / context
    attention = 1.0
    if factor > 1 and context > 1:
      attention = math.sqrt(1 + math.log(factor) / math.log(context))
  factors = found["short_factor"]
  if not isinstance(factors, (list, tuple)):
    raise ValueError(f"short_factor={factors!r} must be a list of numbers")
  numbers = (_number({"short_factor": x}, "short_factor") for x in factors)
  return RopeScaling(
    "factors",
    original_context=context,
    attention_factor=attention,
    factors=tuple(numbers),
  )


def write(model: ModelConfig) -> dict[str, Any]:
  """`rope_parameters` that `read` reads back."""
  full = _spell(model.rope_theta, model.rope_scaling)
  if model.family not in BY_LAYER_TYPE:
    return full
  local = full
  if model.local_rope_theta is not None:
    local = _spell(model.local_rope_theta, model.local_rope_scaling)
  return {_FULL: full, _SLIDING: local}


def _spell(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
  rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
  if scaling is None:
    return rope
  rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
  if scaling.kind != "linear":
    rope[_CONTEXT] = scaling.original_context
  if scaling.kind == "llama3":
    rope["low_freq_factor"] = scaling.low_freq_factor
    rope["high_freq_factor"] = scaling.high_freq_factor
  if scaling.kind == "yarn":
    for name in ("beta_fast", "beta_slow", "attention_factor"):
      rope[name] = getattr(scaling, name)
    if not scaling.truncate:
      rope["truncate"] = False
  if scaling.kind == "factors":
    factors = list(scaling.factors)
    rope |= {
      "rope_type": "longrope", "short_factor": factors, "long_factor": factors,
      "attention_factor": scaling.attention_factor,
    }  # fmt: skip
  return rope
