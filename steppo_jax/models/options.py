"""Options of a model: its adapters, and how devices split it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Adapters of a run.

  Attributes:
    rank: r; 0 trains all parameters and adds none.
    alpha: The product is multiplied by alpha / rank.
    targets: Patterns of the paths of matrices, such as "layers/q/kernel";
      "*" stands for anything.
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = ("layers/*/kernel",)

  def __post_init__(self):
    if self.rank < 0:
      raise ValueError(f"lora.rank={self.rank} must be at least 0")
    if self.rank and not self.alpha > 0:
      raise ValueError(f"lora.alpha={self.alpha} must be above 0")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices that are left for rows split the model as well.

  Attributes:
    fsdp: Devices that each hold a part of every parameter; they hold different
      rows, too.
    tensor: Devices that each compute a part of every layer.
    rollout_devices: Devices of each process that only play: its last ones,
      which the learner leaves alone. With 0 the sampler has all devices, those
      of the learner too. On its own ones it works while the learner does, which
      takes `rollout.staleness` above 0.
  """

  fsdp: int = 1
  tensor: int = 1
  rollout_devices: int = 0

  def __post_init__(self):
    if self.rollout_devices < 0:
      raise ValueError(
        f"mesh.rollout_devices={self.rollout_devices} must be at least 0"
      )
    for name in ("fsdp", "tensor"):
      if getattr(self, name) < 1:
        raise ValueError(f"mesh.{name}={getattr(self, name)} must be above 0")
