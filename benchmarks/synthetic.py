"""What several benchmarks share: random conversations, and one timed update."""

import dataclasses
import functools
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from steppo_jax import types
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import learner
from steppo_jax.learner import options as learner_options
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.models import mesh, transformer
from steppo_jax.packing import options as packing_options
from steppo_jax.packing import prompt_rows
from steppo_jax.packing import rows as packing

TURN, SAMPLED = 100, 20


def conversations(
  tasks: int,
  vocab: int,
  *,
  group: int,
  turns: int = 10,
  static: int = TURN - SAMPLED,
  window: int | None = None,
  common: int = 0,
  seed: int = 0,
) -> list[types.Trajectory]:
  """Random tokens in the shape of long conversations.

  A turn is an observation of 80 tokens and an answer of 20; the first one
  observes nothing but the static part.

  Args:
    tasks: Number of groups.
    vocab: Number of token ids.
    group: Episodes of one task.
    turns: Turns of an episode.
    static: Tokens at the front of every prompt of a task.
    window: Turns of the history that a prompt shows behind the static part;
      None shows all of them, so that each prompt extends the one before.
    common: Turns at the start that all members of a group play alike.
    seed: Of all tokens and rewards.
  """
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(3, vocab, n).astype(np.int32)
  turn = lambda k: (draw(TURN - SAMPLED if k else 0), draw(SAMPLED))
  made = []
  for number in range(tasks):
    task, opening = draw(static), [turn(k) for k in range(common)]
    for member in range(group):
      uid = f"{number}-{member}"
      played = opening + [turn(k) for k in range(common, turns)]
      whole = [np.concatenate(pair) for pair in played]
      steps = []
      for k, (seen, answer) in enumerate(played):
        first = 0 if window is None else max(0, k - window)
        steps.append(
          types.Step(
            prompt_ids=np.concatenate([task, *whole[first:k], seen]),
            response_ids=answer,
            response_mask=np.ones(SAMPLED, bool),
            behaviour_logp=np.full(SAMPLED, -np.log(vocab), np.float32),
            reward=float(rng.normal()),
            trajectory_uid=uid,
            step_index=k,
            group_uid=str(number),
            policy_version=0,
            terminated=k == turns - 1,
            truncated=False,
          )
        )
      record = types.Task(str(number), "synthetic", "none", {})
      made.append(types.Trajectory(uid, record, tuple(steps), None, False))
  return made


class Program(NamedTuple):
  """A compiled update of one shape of batch.

  Attributes:
    run: (state, reference, batch, teacher) to (state, metrics); the state is
      donated.
    state: A fresh state.
    compile_s: Seconds of tracing and compiling.
    temporary_bytes: Memory of the program besides arguments and results.
    argument_bytes: Memory of the arguments: state and batch.
  """

  run: Any
  state: Any
  compile_s: float
  temporary_bytes: int
  argument_bytes: int


def options(**changes) -> learner_options.LearnerConfig:
  """One optimizer step each for critic and policy, from the first update on."""
  return dataclasses.replace(
    learner_options.LearnerConfig(
      num_minibatches=1, actor_epochs=1, critic_epochs=1, critic_warmup=0
    ),
    **changes,
  )


def parts_of(model, config: learner_options.LearnerConfig):
  """StepPO without a reference policy, on one device."""
  row = dataclasses.replace(algorithms_table.get("steppo"), kl_coef=0.0)
  return learner.make_spec(
    model, row, config, mesh.make_mesh(1), num_updates=100, seed=0
  )


def pack(trajectories, layout, row_length, config, rows=None):
  """All trajectories in one mini-batch; and the seconds it took."""
  start = time.perf_counter()
  packed = packing.pack(
    trajectories,
    [0] * len(trajectories),
    packing_options.PackingConfig(layout=layout, row_length=row_length),
    num_parts=1,
    rows_multiple=config.microbatch_rows,
    pad_id=0,
    rows_per_part=rows,
  )
  return packed, time.perf_counter() - start


@functools.cache
def parameters(model: transformer.ModelConfig):
  """Random weights of a model, made once."""
  make = jax.jit(functools.partial(transformer.init, model))
  return jax.device_get(make(jax.random.key(0)))


def put(packed: packing.Packed) -> learner_state.Batch:
  """A batch on one device, and what its critic reads, as runs have it."""
  prompts = prompt_rows.pack(packed, pad_id=0)
  return learner_state.put_batch(packed, mesh.make_mesh(1), prompts=prompts)


def compiled(model, config, batch: learner_state.Batch) -> Program:
  """Compiles the update for batches of the shape of `batch`."""
  spec = parts_of(model, config)
  state = learner.init(spec, parameters(model))
  start = time.perf_counter()
  run = jax.jit(functools.partial(update_lib.update, spec), donate_argnums=0)
  program = run.lower(state, None, batch, None).compile()
  seconds = time.perf_counter() - start
  memory = program.memory_analysis()
  return Program(
    program,
    state,
    seconds,
    memory.temp_size_in_bytes,
    memory.argument_size_in_bytes,
  )


def step(program: Program, batch: learner_state.Batch) -> Program:
  """One update, waited for; the program with the state after it."""
  state, found = program.run(program.state, None, batch, None)
  jax.block_until_ready((state, found))
  return program._replace(state=state)


def timed(program: Program, batch: learner_state.Batch, repeats: int):
  """Median seconds of an update, and the program with the state after it.

  The first run is left out, unless it takes more than five seconds: then what
  it does for the first time weighs nothing.
  """
  times = []
  while len(times) < repeats + 1:
    start = time.perf_counter()
    program = step(program, batch)
    times.append(time.perf_counter() - start)
    if times[0] > 5:
      break
  kept = times[1:] or times
  return statistics.median(kept), program
