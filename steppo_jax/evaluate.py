"""Evaluation of a policy on a pinned panel of tasks."""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from steppo_jax import config as config_lib
from steppo_jax import report, types
from steppo_jax.data import tokenizer as tokenizer_lib
from steppo_jax.envs import base, process
from steppo_jax.models import transformer, weights
from steppo_jax.rollout import counts, loop, prompting
from steppo_jax.sampler import engine as engine_lib

# Keys of evaluation start here, far from every update's.
_EVALUATION = 2**31


def load_policy(
  path: str, tokenizer: types.Tokenizer
) -> tuple[transformer.ModelConfig, dict[str, Any]]:
  """Reads a policy and checks that it belongs to the tokenizer.

  Args:
    path: Safetensors file written by this package.
    tokenizer: The run's tokenizer.

  Raises:
    ValueError: the file is missing, cut short, of another tokenizer, or its
      arrays do not fit the sizes it names.
  """
  params, metadata = weights.load_params(path, dtype="float32")
  if "model" not in metadata or "tokenizer" not in metadata:
    raise ValueError(
      f"{path} does not name its model and tokenizer: it was not written by "
      "`python -m steppo_jax train`"
    )
  if metadata["tokenizer"] != tokenizer.digest:
    raise ValueError(
      f"{path} was trained with tokenizer {metadata['tokenizer'][:12]}, this "
      f"one is {tokenizer.digest[:12]}: use the weights' own tokenizer"
    )
  model = transformer.ModelConfig(**json.loads(metadata["model"]))
  weights.check_like(params, transformer.abstract_params(model))
  return model, params


def save_policy(
  path: str | pathlib.Path,
  model: transformer.ModelConfig,
  params: dict[str, Any],
  tokenizer: types.Tokenizer,
  facts: dict[str, Any],
) -> None:
  """Writes a policy with what `load_policy` checks and some facts."""
  metadata = {
    "model": json.dumps(dataclasses.asdict(model)),
    "tokenizer": tokenizer.digest,
    "facts": json.dumps(facts),
  }
  weights.save_params(path, params, metadata)


def make_tasks(env: config_lib.EnvConfig) -> base.TaskList:
  """The task lists that the options name.

  Raises:
    ValueError: an option is missing or does not fit, such as ALFWorld without
      its folder, or an unknown size.
  """
  return env.recipes().tasks.make()


def make_env(env: config_lib.EnvConfig) -> base.Makers:
  """What makes environments, in this process or in workers; to be closed."""
  recipe = env.recipes().env
  if env.workers:
    return process.Workers(recipe, env.workers, env.limits)
  return base.InProcess(recipe)


def panel_hash(tasks: Sequence[types.Task]) -> str:
  """Names a panel by its tasks: equal hashes, equal panels."""
  lines = "\n".join(task.uid for task in tasks)
  return hashlib.sha256(lines.encode()).hexdigest()[:12]


class Evaluator:
  """Plays one panel of tasks with the weights it is given.

  Attributes:
    engine: The sampler; shared with training, so that nothing compiles twice.
    prompt: Builds prompts from observations.
    tasks: The panel.
    rollout: Limits of an episode, and of how many are played at once.
    make_env: Makes environments; shared with training. Leaving the context, or
      `close`, ends their workers.
  """

  def __init__(
    self,
    engine: engine_lib.SlotEngine,
    prompt: prompting.Prompt,
    rollout: loop.RolloutConfig,
    env: config_lib.EnvConfig,
    tasks: Sequence[types.Task],
  ):
    self.engine = engine
    self.prompt = prompt
    self.tasks = tasks
    self.make_env = make_env(env)
    at_once = [n for n in (rollout.max_live, self.make_env.at_once) if n]
    if at_once:
      rollout = dataclasses.replace(rollout, max_live=min(at_once))
    self.rollout = rollout

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self) -> None:
    """Ends the environments' workers, if there are any."""
    self.make_env.close()

  def __call__(
    self,
    *,
    temperature: float = 0.0,
    samples: int = 1,
    on_finish: Callable[[types.Trajectory], None] | None = None,
  ) -> tuple[dict[str, float], list[types.Trajectory]]:
    """Plays the panel.

    Args:
      temperature: 0 is greedy.
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
    trajectories = loop.run(
      self.engine,
      self.make_env,
      episodes,
      self.prompt,
      dataclasses.replace(self.rollout, temperature=temperature),
      on_finish=on_finish,
    )
    # An evaluation counts an error as a failure: the task was not solved.
    found = counts.summary(trajectories)
    solved = sum(t.success for t in trajectories)
    found["success"] = (float(solved), float(len(trajectories)))
    metrics = {
      f"eval/{name}": total / weight if weight else float("nan")
      for name, (total, weight) in found.items()
    }
    low, high = report.wilson_interval(solved, len(trajectories))
    metrics["eval/success_low"], metrics["eval/success_high"] = low, high
    metrics["eval/seconds"] = time.monotonic() - start
    return metrics, trajectories


def make_evaluator(
  config: config_lib.RunConfig | config_lib.SupervisedRun,
  model: transformer.ModelConfig,
  tokenizer: types.Tokenizer,
) -> Evaluator:
  """The evaluator that a configuration describes, with an engine of its own."""
  rollout = config.rollout
  engine = engine_lib.SlotEngine(
    model,
    config.sampler,
    context=rollout.max_tokens,
    max_new_tokens=rollout.max_new_tokens,
    end_of_turn_id=tokenizer.end_of_turn_id,
    seed=config.seed,
  )
  panel = make_tasks(config.env).panel(
    config.evaluation.split, config.evaluation.episodes
  )
  options = prompting.PromptConfig()
  if isinstance(config, config_lib.RunConfig):
    options = config.prompt
  prompt = prompting.make(options, tokenizer)
  return Evaluator(engine, prompt, rollout, config.env, panel)


def evaluate(
  config: config_lib.RunConfig,
  *,
  temperature: float,
  samples: int,
  output: str | None,
  on_finish: Callable[[types.Trajectory], None] | None = None,
) -> dict[str, float]:
  """Evaluates the weights that a configuration names.

  Args:
    config: A run's options; `weights` is the policy.
    temperature: 0 is greedy.
    samples: Episodes of each task.
    output: File that gets one JSON line a step; None writes none.
    on_finish: Called with each trajectory when it ends.

  Returns:
    Metrics named "eval/..."; "eval/panel" is the hash of the panel.
  """
  if output and not pathlib.Path(output).absolute().parent.is_dir():
    raise ValueError(f"no folder for output={output}")
  tokenizer = tokenizer_lib.SentencePieceTokenizer()
  model, params = load_policy(config.weights, tokenizer)
  evaluator = make_evaluator(config, model, tokenizer)
  evaluator.engine.set_params(params, 0)
  with evaluator:
    metrics, trajectories = evaluator(
      temperature=temperature, samples=samples, on_finish=on_finish
    )
  if output:
    write_steps(output, trajectories, evaluator.prompt)
  return metrics | {"eval/panel": panel_hash(evaluator.tasks)}


def write_steps(
  path: str | pathlib.Path,
  trajectories: Sequence[types.Trajectory],
  prompt: prompting.Prompt,
) -> None:
  """Writes one JSON line a step, and one for an episode without steps."""
  with open(path, "w") as file:
    for trajectory in trajectories:
      common = {
        "trajectory": trajectory.uid,
        "task": trajectory.task.uid,
        "family": trajectory.task.family,
        "success": trajectory.success,
        "error": trajectory.error,
      }
      for step in trajectory.steps:
        line = common | {
          "step": step.step_index,
          "prompt": prompt.tokenizer.decode(step.prompt_ids),
          "action": prompt.action(step.response_ids),
          "reward": step.reward,
          "terminated": step.terminated,
          "truncated": step.truncated,
          **step.metadata,
        }
        file.write(json.dumps(line) + "\n")
      if not trajectory.steps:
        file.write(json.dumps(common) + "\n")
