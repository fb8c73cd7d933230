"""The update under `jax.pmap`: data-parallel research with explicit devices.

`learner.learner.Learner` lets the compiler split the work over a mesh. Here
each device runs the same program on its rows, and what the devices share is
written out: a sum over the axis "devices" at the end of each mini-batch. Both
compute the same; this one keeps a whole copy of the state and of the batch on
every device. Critics read whole rows, whatever `learner.critic_reads` says.
"""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import numpy as np

from steppo_jax.algorithms.table import Algorithm
from steppo_jax.learner import learner, options
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.models import transformer
from steppo_jax.packing import rows as packing

_AXIS = "devices"


class PmapLearner:
  """As `learner.learner.Learner`, with `jax.pmap` in place of `jax.jit` on a
  mesh.

  Args:
    model: Sizes of the decoder.
    algorithm: Row of the table.
    config: The options; `microbatch_rows` is a multiple of the devices.
    devices: What it runs on, devices of this process.
    num_updates: Length of the run, for the decay of the learning rates.
    seed: Root of the order of mini-batches.
    temperature: Of the softmax that sampled, above 0.

  Raises:
    ValueError: rows do not divide over the devices, or options that
      `learner.learner.make_spec` refuses.
  """

  def __init__(
    self,
    model: transformer.ModelConfig,
    algorithm: Algorithm,
    config: options.LearnerConfig,
    devices: Sequence[jax.Device],
    *,
    num_updates: int,
    seed: int,
    temperature: float = 1.0,
  ):
    self._devices = list(devices)
    spec = learner.make_spec(
      model,
      algorithm,
      config,
      jax.sharding.Mesh(np.array(self._devices), ("data",)),
      num_updates=num_updates,
      seed=seed,
      temperature=temperature,
    )
    self._spec = spec._replace(axis=(_AXIS, len(self._devices)))
    self._update = jax.pmap(
      functools.partial(update_lib.update, self._spec),
      axis_name=_AXIS,
      in_axes=(0, None, None, None),
      devices=self._devices,
      donate_argnums=0,
    )

  def init(self, policy: chex.ArrayTree) -> learner_state.LearnerState:
    """State before the first update; each array [D, ...], a copy a device."""
    state = learner.init(self._spec, policy)
    copy = jax.pmap(
      lambda _, state: state, in_axes=(0, None), devices=self._devices
    )
    return copy(np.arange(len(self._devices)), state)

  def update(
    self,
    state: learner_state.LearnerState,
    reference: chex.ArrayTree | None,
    packed: packing.Packed,
    teacher: chex.ArrayTree | None = None,
  ) -> tuple[learner_state.LearnerState, dict[str, Any]]:
    """One update; `state` is donated.

    Args:
      state: From `init` or `update`.
      reference: Parameters of the reference policy, None without a KL term.
      packed: The batch on the host.
      teacher: Parameters of a teacher, None without.

    Returns:
      State after, a copy a device, and metrics as
      `learner.learner.Learner.update`'s.

    Raises:
      ValueError: a policy that the algorithm reads is missing.
    """
    batch = learner_state.Batch(packed.tokens, packed.table, packed.rows_used)
    state, found = self._update(state, reference, batch, teacher)
    return state, one(found)


def one(tree: chex.ArrayTree) -> chex.ArrayTree:
  """What the first device holds of arrays [D, ...]: all hold the same."""
  return jax.tree.map(lambda x: x[0], tree)
