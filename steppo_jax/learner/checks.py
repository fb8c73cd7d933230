"""What no update can be made of is refused before anything is compiled."""

import jax

from steppo_jax.algorithms import objective
from steppo_jax.algorithms.table import Algorithm
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.learner.spec import Model
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models import transformer


def check_rows(config: LearnerConfig, mesh: jax.sharding.Mesh) -> None:
  """Refuses microbatches that cannot be dealt to the devices of a mesh.

  Raises:
    ValueError: it names both numbers.
  """
  devices = mesh_lib.row_parts(mesh)
  if config.microbatch_rows % devices:
    raise ValueError(
      f"learner.microbatch_rows={config.microbatch_rows} is not a multiple "
      f"of the {devices} devices"
    )


def _check_own(config: LearnerConfig) -> None:
  """Refuses options that change our decoder, and would do nothing here.

  Those that only say how it is computed (attention, blocks, remat) are left
  unread without a word: what is learned does not depend on them.
  """
  asked = (
    ("lora.rank", config.lora.rank, 0),
    ("critic_lora.rank", config.critic_lora.rank, 0),
    ("critic_layers", config.critic_layers, None),
    ("critic_trunk", config.critic_trunk, "own"),
  )
  for name, value, default in asked:
    if value != default:
      raise ValueError(
        f"learner.{name}={value} changes our decoder, and nothing of a model "
        "of one's own: build it into the functions of learner.spec.Model"
      )


def check_spec(
  model: transformer.ModelConfig | Model,
  algorithm: Algorithm,
  config: LearnerConfig,
  mesh: jax.sharding.Mesh,
  temperature: float,
  differentiable: bool,
) -> None:
  """Refuses what no update can be made of; arguments as of `make_spec`.

  Raises:
    ValueError: it says what to set.
  """
  objective.check_names(algorithm)
  if not temperature > 0:
    raise ValueError(
      f"rollout.temperature={temperature} must be above 0 in training: a "
      "greedy policy explores nothing"
    )
  own = isinstance(model, Model)
  named = f"learner.optimizer={config.optimizer}"
  if differentiable and config.optimizer != "adamw":
    raise ValueError(
      f"{named} has no derivative where a gradient is 0: differentiable=True "
      "takes learner.optimizer=adamw"
    )
  if own and config.optimizer in ("muon", "adafactor"):
    raise ValueError(
      f"{named} knows which arrays hold the matrices of our decoder, and not "
      "those of a model of one's own: take adamw or schedule_free, or give "
      "UpdateSpec._replace(policy_optimizer=..., critic_optimizer=...)"
    )
  if own and algorithm.critic and model.values is None:
    raise ValueError(
      f"estimator {algorithm.estimator!r} needs a critic: give Model(..., "
      "values=) and init(..., critic=)"
    )
  if (
    own
    and algorithm.focus_alpha is not None
    and (model.log_probs_and_energies is None)
  ):
    raise ValueError(
      f"focus_alpha={algorithm.focus_alpha} weighs tokens by the energies of "
      "the reference: give Model(..., log_probs_and_energies=), or take "
      "focus_alpha=None"
    )
  if not own and model.windows and config.attention == "pallas":
    raise ValueError(
      "learner.attention=pallas knows of no sliding windows: take xla or auto "
      f"for a {model.family} model"
    )
  check_rows(config, mesh)
  if own:
    _check_own(config)
  if not own and (config.critic_layers or 0) > model.num_layers:
    raise ValueError(
      f"learner.critic_layers={config.critic_layers} is more than the "
      f"{model.num_layers} layers of the policy: take fewer"
    )
