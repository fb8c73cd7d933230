"""Our side: `SlotEngine.generate` with kept slots, and the packed learner."""

import dataclasses

import jax
import numpy as np
import work as work_lib

from steppo_jax import types
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import learner as learner_lib
from steppo_jax.learner import options
from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh, transformer
from steppo_jax.models.formats import weights
from steppo_jax.packing import options as packing_options
from steppo_jax.packing import rows as packing
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options as sampler_options

PARAMS_NAME = "ours.safetensors"


def model_of(spec):
  """The decoder that all sides run."""
  return transformer.ModelConfig(**spec["model"])


class Ours:
  """See `work.main` for what a side offers."""

  name = "ours"

  def __init__(self, work):
    self._work = work
    self._model = model_of(work.spec)
    self._params, _ = weights.load_params(work.folder / PARAMS_NAME)
    self._mesh = mesh.make_mesh(1)

  def versions(self):
    return {"jax": jax.__version__}

  def _packed(self):
    length = self._work.tokens.shape[1]
    return packing.pack(
      trajectories(self._work),
      [0] * len(self._work.tokens),
      # Whole blocks of the attention, which takes 64 queries at once.
      packing_options.PackingConfig(row_length=-(-length // 64) * 64),
      num_parts=1,
      rows_multiple=len(self._work.tokens),
      pad_id=work_lib.PAD,
    )

  def _algorithm(self):
    """A clipped loss per token without critic and without KL: DAPO's."""
    spec = self._work.spec["update"]
    return dataclasses.replace(
      algorithms_table.get("dapo"),
      clip_low=spec["clip_low"],
      clip_high=spec["clip_high"],
    )

  def _options(self):
    spec = self._work.spec["update"]
    return options.LearnerConfig(
      learning_rate=spec["learning_rate"],
      final_learning_rate=1.0,
      warmup_steps=0,
      max_grad_norm=spec["max_grad_norm"],
      num_minibatches=1,
      # All conversations at once, as the other sides take them.
      microbatch_rows=len(self._work.tokens),
    )

  def logprobs(self):
    """[N, A] log-probs of the sampled tokens, as the learner computes them."""
    packed = self._packed()
    spec = learner_lib.make_spec(
      self._model, self._algorithm(), self._options(), self._mesh,
      num_updates=1, seed=0,
    )  # fmt: skip
    used = int(packed.rows_used[0])
    rows = jax.tree.map(lambda x: x[0, :used], packed.tokens)
    logp = np.asarray(jax.jit(spec.logp)(self._params, rows)[0]).reshape(-1)
    step = rows.step_ids.reshape(-1)
    # Steps are numbered in order; a stable sort keeps the order within them.
    order = np.argsort(step, kind="stable")[np.count_nonzero(step == 0) :]
    return logp[order].reshape(len(self._work.tokens), -1)

  def talkers(self, turns):
    del turns
    return {"steppo_jax": self._talker}

  def _talker(self, episodes, turns, sizes):
    context = turns * (sizes["observe"] + sizes["sample"])
    engine = engine_lib.SlotEngine(
      self._model,
      # A turn's observation and the last sampled token are read in one run.
      sampler_options.SamplerConfig(
        num_slots=episodes, prefill_lengths=(sizes["observe"] + 1,)
      ),
      context=-(-context // 64) * 64,
      max_new_tokens=sizes["sample"],
      end_of_turn_id=-1,  # Never sampled: all sides decode as many tokens.
      seed=0,
    )

    def answer(prompts, turn):
      requests = [
        types.Request(str(n), prompt, (n, turn), sizes["sample"], 1.0)
        for n, prompt in enumerate(prompts)
      ]
      return np.stack([r.response_ids for r in engine.generate(requests)])

    def play(shown):
      engine.set_params(self._params, 0)  # Drops what the last play left.
      history = work_lib.converse(shown, answer)
      for n in range(episodes):
        engine.release(str(n))
      return history

    return play

  def updates(self):
    return {"steppo_jax, packed": self._updater}

  def _updater(self):
    learner = learner_lib.Learner(
      self._model, self._algorithm(), self._options(), self._mesh,
      num_updates=100, seed=0,
    )  # fmt: skip
    state = learner.init(self._params)

    def update():
      nonlocal state
      batch = learner_state.put_batch(self._packed(), self._mesh)
      state, found = learner.update(state, None, batch)
      mean = lambda name: float(found[name][0]) / float(found[name][1])
      return {
        "loss": mean("policy/policy_loss"),
        "grad_norm": mean("policy/grad_norm"),
      }

    return update


def trajectories(work):
  """The conversations as records of the library."""
  sizes = work.spec["update"]
  size, sample = sizes["observe"] + sizes["sample"], sizes["sample"]
  made = []
  for n, tokens in enumerate(work.tokens):
    steps = []
    for k in range(sizes["turns"]):
      end = (k + 1) * size
      steps.append(
        types.Step(
          prompt_ids=tokens[: end - sample],
          response_ids=tokens[end - sample : end],
          response_mask=np.ones(sample, bool),
          behaviour_logp=work.behaviour_logp[n, work_lib.step_slice(work, k)],
          reward=float(work.reward[n]) if k == sizes["turns"] - 1 else 0.0,
          trajectory_uid=str(n),
          step_index=k,
          group_uid="0",
          policy_version=0,
          terminated=k == sizes["turns"] - 1,
        )
      )
    task = types.Task("0", "synthetic", "none", {})
    made.append(types.Trajectory(str(n), task, tuple(steps), None, False))
  return made


if __name__ == "__main__":
  work_lib.main(Ours)
