"""Evaluation of a policy on a pinned panel of tasks."""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable, Sequence

from steppo_jax import types
from steppo_jax.datasets import trajectories as trajectories_lib
from steppo_jax.models import out_of_memory
from steppo_jax.pretrained import policy
from steppo_jax.reports import evaluation, intervals, panel
from steppo_jax.rollout import counts, gathering, loop
from steppo_jax.sampler import split as sampler_split
from steppo_jax.training import config as config_lib
from steppo_jax.training import players as players_lib

# Keys of evaluation start here, far from every update's.
_EVALUATION = 2**31


def panel_hash(tasks: Sequence[types.Task]) -> str:
  """Names a panel by its tasks: equal hashes, equal panels."""
  lines = "\n".join(task.uid for task in tasks)
  return hashlib.sha256(lines.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Plays one panel of tasks with the weights that the players hold.

  Attributes:
    players: What plays the episodes; shared with training, so that nothing
      compiles twice. Each of its processes plays a share of the panel.
    tasks: The panel.
    temperature: Of the panel's episodes; 0 is greedy.
  """

  players: players_lib.Players
  tasks: Sequence[types.Task]
  temperature: float

  def __call__(
    self,
    *,
    samples: int = 1,
    on_finish: Callable[[types.Trajectory], None] | None = None,
  ) -> tuple[dict[str, float], list[types.Trajectory]]:
    """Plays the panel.

    Args:
      samples: Episodes of each task.
      on_finish: Called with each trajectory when it ends.

    Returns:
      Metrics named "eval/...", and the trajectories.
    """
    episodes = [
      loop.Episode(f"evaluation-{i}-{j}", task, i, (_EVALUATION, i, j))
      for i, task in enumerate(self.tasks)
      for j in range(samples)
    ]
    start = time.monotonic()
    hosts = self.players.hosts
    trajectories = self.players.play(
      hosts.share(episodes),
      temperature=self.temperature,
      on_finish=on_finish,
    )
    trajectories, _ = gathering.gather(
      hosts, "the evaluation", trajectories, episodes, {}
    )
    # An evaluation counts an error as a failure: the task was not solved.
    found = counts.summary(trajectories)
    solved = sum(t.success for t in trajectories)
    found["success"] = (float(solved), float(len(trajectories)))
    metrics = {
      f"eval/{name}": total / weight if weight else float("nan")
      for name, (total, weight) in found.items()
    }
    low, high = intervals.wilson_interval(solved, len(trajectories))
    metrics["eval/success_low"], metrics["eval/success_high"] = low, high
    metrics["eval/seconds"] = time.monotonic() - start
    return metrics, trajectories


def _check_samples(temperature: float, samples: int, ks: Sequence[int]) -> None:
  if temperature == 0 and samples > 1:
    raise ValueError(
      f"greedy episodes of a task are all the same: samples={samples} needs a "
      "temperature above 0"
    )
  for k in ks:
    if not 1 <= k <= samples:
      raise ValueError(f"pass@{k} needs at least {k} samples, not {samples}")


def _facts(config, panels, samples: int) -> dict[str, object]:
  """What was played: the head of a summary."""
  return {
    "weights": config.weights,
    "env": config.env.name,
    "panels": {s: panel_hash(of) for s, of in panels.items()},
    "tasks": {s: len(of) for s, of in panels.items()},
    "max_steps": config.rollout.max_steps,
    "max_invalid": config.rollout.max_invalid,
    "temperature": config.evaluation.temperature,
    "samples": samples,
  }


def evaluate(
  config: config_lib.RunConfig,
  *,
  samples: int = 1,
  ks: Sequence[int] = (1,),
  splits: Sequence[str] = (),
  output: str | None = None,
  record: str | None = None,
  on_start: Callable[[int], None] | None = None,
  on_finish: Callable[[types.Trajectory], None] | None = None,
) -> evaluation.Evaluation:
  """Evaluates the weights that a configuration names.

  Args:
    config: A run's options; `weights` is the policy.
    samples: Episodes of each task.
    ks: Of pass@k, each at most `samples`.
    splits: Whose panels are played; the configuration's without.
    output: File that gets one JSON line a step; the summary, and the figure of
      lengths, are written beside it. None writes none.
    record: Folder of a dataset of the episodes; see `datasets.trajectories`.
    on_start: Called with the number of episodes before the first.
    on_finish: Called with each trajectory when it ends.

  Raises:
    ValueError: an option does not fit; nothing was played.
  """
  _check_samples(config.evaluation.temperature, samples, ks)
  if output and not pathlib.Path(output).absolute().parent.is_dir():
    raise ValueError(f"no folder for output={output}")
  if record:
    record = pathlib.Path(record)
    trajectories_lib.check_new(record.parent, record.name, config.record_format)
  tokenizer = policy.load_tokenizer(
    config.tokenizer, config.weights, config.base
  )
  model, params = players_lib.load_model(
    config, tokenizer, sampler_split.placement(config.sampler.tensor)
  )
  tasks = players_lib.make_tasks(config.env)
  splits = tuple(dict.fromkeys(splits or (config.evaluation.split,)))
  panels = {
    s: players_lib.panel(tasks, config.env.name, s, config.evaluation.episodes)
    for s in splits
  }
  if on_start is not None:
    on_start(samples * sum(map(len, panels.values())))
  played = {}
  with players_lib.make(config, model, tokenizer) as players:
    engine = players.engine
    held = lambda: getattr(engine, "held", {})
    with out_of_memory.part("the evaluation", held):
      engine.set_params(params, 0)
      del params  # The sampler has a copy of its own, in its own form.
      for split, of in panels.items():
        evaluator = Evaluator(players, of, config.evaluation.temperature)
        _, played[split] = evaluator(samples=samples, on_finish=on_finish)
  found = evaluation.Evaluation(
    _facts(config, panels, samples),
    evaluation.notes(config.env.name, config.rollout.max_steps),
    played,
    {s: panel.table(of, ks) for s, of in played.items()},
    {s: panel.by_length(of) for s, of in played.items()},
  )
  if output:
    evaluation.write_steps(output, played, players.prompt)
    evaluation.write_summary(output, found)
  if record:
    trajectories_lib.write(
      record.parent, record.name, played, tokenizer, config.record_format
    )
  return found
