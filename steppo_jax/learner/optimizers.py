"""The optimizers of policy and critic, all of them Optax's.

`make` makes the one that `learner.optimizer` names. Each of them scales the
gradients down to a norm, warms up, and keeps what it remembers of gradients in
float32 whatever type the parameters have: in bfloat16 an average of squares
that has grown would never fall again, as what a step takes from it is less than
half of its last bit.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from steppo_jax.learner.options import LearnerConfig
from steppo_jax.models import lora
from steppo_jax.ops import floats

# Of all of them: how long Adam's average of squares remembers.
_B2 = 0.99
# Root of the mean square of Muon's steps, about that of AdamW's.
_STEP_RMS = 0.2


def make(
  peak: chex.Numeric,
  warmup: int,
  config: LearnerConfig,
  steps: int,
  *,
  eps_root: float,
) -> optax.GradientTransformation:
  """The optimizer that `config.optimizer` names; see `adamw` for the others.

  Args:
    peak: Learning rate at its highest.
    warmup: Steps over which it rises from 0, which is the rate of the first.
    config: The learner's options.
    steps: Length of the run in optimizer steps.
    eps_root: Added under Adam's square root; the others have none.
  """
  if config.optimizer == "adamw":
    made = adamw(peak, warmup, config, steps, eps_root=eps_root)
  else:
    last = {
      "muon": _muon, "adafactor": _adafactor, "schedule_free": _schedule_free,
    }[config.optimizer]  # fmt: skip
    schedule = _schedule(peak, warmup, config, steps)
    made = optax.chain(_clipped(config.max_grad_norm), last(schedule, config))
  return _in_float32(made)


def adamw(
  peak: chex.Numeric,
  warmup: int,
  config: LearnerConfig,
  steps: int,
  *,
  eps_root: float,
) -> optax.GradientTransformation:
  """Clipping, AdamW, a short warm-up and a linear decay over `steps`.

  Args:
    peak: Learning rate at its highest.
    warmup: Steps over which it rises from 0, which is the rate of the first.
    config: The learner's options.
    steps: Length of the run in optimizer steps.
    eps_root: Added under Adam's square root.
  """
  return optax.chain(
    _clipped(config.max_grad_norm),
    optax.adamw(
      _schedule(peak, warmup, config, steps),
      b2=_B2, eps_root=eps_root, weight_decay=config.weight_decay,
    ),
  )  # fmt: skip


def _schedule(peak, warmup, config, steps) -> optax.Schedule:
  final = peak * config.final_learning_rate
  warmup = min(warmup, steps // 2)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, max(warmup, 1)),
      optax.linear_schedule(peak, final, max(steps - warmup, 1)),
    ],
    [warmup],
  )


def _muon(schedule, config) -> optax.GradientTransformation:
  """Muon for the matrices of the layers, Adam for everything else.

  A matrix moves along U Vᵀ of its momentum U S Vᵀ, so that no direction is
  preferred. Such a step of an [in, out] matrix has a root mean square of
  1/√max(in, out); it is scaled to that of AdamW's steps, and `learning_rate`
  means the same for both.

  Source: Liu et al. 2025, arXiv:2502.16982, section 2.2.
  """
  return optax.chain(
    contrib.muon(1.0, adam_b2=_B2, muon_weight_dimension_numbers=_matrices),
    optax.stateless(_even),
    # Both have turned their steps down the gradient.
    optax.add_decayed_weights(-config.weight_decay),
    optax.scale_by_learning_rate(schedule, flip_sign=False),
  )


def _matrices(params: Any) -> Any:
  """Which axes of each parameter are a matrix's; None where it is none.

  Layers lie one behind the other, [L, in, out], each a matrix of its own. Norm
  scales and biases [L, D] look like one matrix and are L vectors. Embeddings
  are tables of vectors.
  """

  def axes(path, x):
    stacked = _keys(path)[-1] in ("kernel", "lora_a", "lora_b") and x.ndim == 3
    return contrib.MuonDimensionNumbers(1, 2) if stacked else None

  return jax.tree_util.tree_map_with_path(axes, params)


def _even(updates: Any, params: Any) -> Any:
  """Gives Muon's steps the root mean square of AdamW's."""
  del params

  def one(axes, x):
    if axes is None:
      return x
    wide, out = x.shape[1:]
    taken = max(1.0, out / wide) ** 0.5  # Optax's own scale.
    return x * (_STEP_RMS * max(wide, out) ** 0.5 / taken)

  is_leaf = lambda x: x is None or isinstance(x, contrib.MuonDimensionNumbers)
  return jax.tree.map(one, _matrices(updates), updates, is_leaf=is_leaf)


def _adafactor(schedule, config) -> optax.GradientTransformation:
  """Adafactor with steps of AdamW's size, each layer by itself.

  An average of squares is kept for each row and each column of a matrix that
  has 128 of both. Without the scale by the parameters' own size, which the
  paper has beside it, `learning_rate` means what it means for AdamW.

  Source: Shazeer and Stern 2018, arXiv:1804.04235, algorithm 4.
  """
  one = optax.adafactor(None, multiply_by_parameter_scale=False)

  def by_layer(function):
    # Of a critic that has no layers there is nothing to map over.
    return lambda first, *rest: (
      jax.vmap(function) if jax.tree.leaves(first) else function
    )(first, *rest)

  layers = optax.GradientTransformation(
    by_layer(one.init), by_layer(one.update)
  )
  return optax.chain(
    optax.partition({"layers": layers, "others": one}, _in_layers),
    optax.add_decayed_weights(-config.weight_decay),
    optax.scale_by_learning_rate(schedule, flip_sign=False),
  )


def _in_layers(params: Any) -> Any:
  """Which parameters hold all layers, [L, ...], and which others."""
  label = lambda path, _: "layers" if "layers" in _keys(path) else "others"
  return jax.tree_util.tree_map_with_path(label, params)


def _schedule_free(schedule, config) -> optax.GradientTransformation:
  """AdamW whose average of iterates takes the place of a decay.

  The parameters that are trained and sampled from are those where gradients
  are taken; `evaluated` gives the average.

  Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
  """
  adam = optax.chain(
    optax.scale_by_rms(_B2, eps_in_sqrt=False, bias_correction=True),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(schedule),
  )
  return contrib.schedule_free(adam, schedule)


def evaluated(state: optax.OptState, params: Any) -> Any:
  """The parameters to evaluate and to keep, given those that are trained.

  They are the very same, other than for `schedule_free`.

  Args:
    state: Of the optimizer, of any kind.
    params: What it trains, with the frozen rest where there are adapters.
  """
  is_free = lambda x: isinstance(x, contrib.ScheduleFreeState)
  found = [s for s in jax.tree.leaves(state, is_leaf=is_free) if is_free(s)]
  if not found:
    return params
  trained, frozen = lora.split(params)
  mean = contrib.schedule_free_eval_params(found[0], trained)
  mean = jax.tree.map(lambda x, y: x.astype(y.dtype), mean, trained)
  return lora.join(mean, frozen)


def _keys(path) -> list[str]:
  """The keys to a leaf; trees of adapters have several in one, "a/b"."""
  return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def _in_float32(
  made: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Keeps the state in float32 or more, and computes in it."""
  wide = lambda tree: jax.tree.map(floats.wide, tree)

  def update(updates, state, params):
    return made.update(wide(updates), state, wide(params))

  return optax.GradientTransformation(
    lambda params: made.init(wide(params)), update
  )


def _clipped(norm: chex.Numeric) -> optax.GradientTransformation:
  """Scales gradients down to a global norm.

  As `optax.clip_by_global_norm`, with a derivative where all of them are 0.
  """

  def update(updates, state, params=None):
    del params
    square = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(updates))
    found = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    small = (square == 0) | (found < norm)
    # What is remembered of gradients keeps their type.
    bound = lambda x: floats.constant(norm, x.dtype)
    cut = lambda x: jnp.where(small, x, (x / found.astype(x.dtype)) * bound(x))
    return jax.tree.map(cut, updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def step(
  optimizer: optax.GradientTransformation,
  grads: chex.ArrayTree,
  state: optax.OptState,
  params: chex.ArrayTree,
) -> tuple[chex.ArrayTree, Any]:
  """Parameters and state after one step of any optimizer.

  Optax counts on implicit promotion, whatever the program around it does.
  """
  with jax.numpy_dtype_promotion("standard"):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state
