"""Options of where the numbers of a run go."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
  """Programs that show the numbers of a run, beside its `metrics.jsonl`.

  Attributes:
    sinks: Of "tensorboard", "wandb" (Weights & Biases), "mlflow" and
      "trackio", as many as are wanted, with commas between them; the last
      three are extras to be installed.
    project: What runs are filed under: project of Weights & Biases and
      trackio, experiment of MLflow.
    wandb: "offline" writes into the run's folder, for `wandb sync` to send
      later; "online" sends at once.
    mlflow: Where MLflow keeps runs, such as "sqlite:///mlflow.db"; None for
      what MLflow itself takes (MLFLOW_TRACKING_URI).
  """

  sinks: tuple[str, ...] = ("tensorboard",)
  project: str = "steppo_jax"
  wandb: Literal["offline", "online"] = "offline"
  mlflow: str | None = None
