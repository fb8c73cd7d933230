"""A model of one's own under the update of StepPO: `python own_model.py`.

In this world an episode has three steps. Each prompt ends with a colour, a
token of 1 .. 4, and the answer is two tokens; the reward is the share of them
that repeat the colour. The policy is a table of logits by the token before.
Takes seconds on one core.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import steppo_jax as sj

COLOURS, STEPS, ANSWER = 4, 3, 2
TASK = sj.types.Task("colours", "own", "colours", {})
CONFIG = sj.LearnerConfig(
  learning_rate=0.1, critic_learning_rate=0.1, num_minibatches=2,
  critic_warmup=0, warmup_steps=0, critic_warmup_steps=0, microbatch_rows=4,
)  # fmt: skip


def log_probs(policy, rows):
  """Log-probabilities and entropies of all tokens, given the ones before."""
  before = jnp.take_along_axis(rows.tokens, rows.parent, axis=1)
  logp = jax.nn.log_softmax(policy[0][before])
  entropy = -(jnp.exp(logp) * logp).sum(-1)
  return jnp.take_along_axis(logp, rows.tokens[..., None], 2)[..., 0], entropy


def values(critic, rows):
  """V of the state whose last token is this one."""
  return critic["table"][rows.tokens]


def play(policy, rng, uid):
  """One episode, sampled on the host."""
  logp = np.asarray(jax.nn.log_softmax(policy[0]))
  tokens, steps = [0], []
  for k in range(STEPS):
    colour = int(rng.integers(1, 1 + COLOURS))
    prompt, last, said = [*tokens, colour], colour, []
    for _ in range(ANSWER):
      p = np.exp(logp[last].astype(np.float64))
      said.append((int(rng.choice(len(p), p=p / p.sum())), last))
      last = said[-1][0]
    tokens = [*prompt, *(token for token, _ in said)]
    steps.append(
      sj.types.Step(
        np.array(prompt, np.int32), np.array(tokens[-ANSWER:], np.int32),
        np.ones(ANSWER, bool), np.float32([logp[b, t] for t, b in said]),
        float(np.mean([token == colour for token, _ in said])), uid, k, "group",
        0, terminated=k == STEPS - 1, truncated=False,
      )
    )  # fmt: skip
  return sj.types.Trajectory(uid, TASK, tuple(steps), None, False)


def sample(policy, rng, mesh):
  """A batch of 32 episodes on the device, and their mean reward of a step."""
  played = [play(policy, rng, str(i)) for i in range(32)]
  packed = sj.packing.pack(
    played, np.arange(32) % 2, sj.packing.PackingConfig(row_length=16),
    num_parts=2, rows_multiple=4, pad_id=0, rows_per_part=16,
  )  # fmt: skip
  reward = np.mean([s.reward for t in played for s in t.steps])
  return sj.put_batch(packed, mesh), reward


def train(updates, *, seed=0):
  """Mean reward of a step in every update, and the policy at the end."""
  size, rng = 1 + COLOURS, np.random.default_rng(seed)
  row = dataclasses.replace(
    sj.ALGORITHMS["steppo"], clip_low=0.2, clip_high=0.2, kl_coef=0.0
  )
  parts = sj.make_parts(
    sj.Model(log_probs, values), row, CONFIG, num_updates=updates
  )
  # Any trees of arrays: here a tuple and a dict.
  state = sj.init(parts, (jnp.zeros((size, size)),), {"table": jnp.zeros(size)})
  step, rewards = jax.jit(lambda *x: sj.update(parts, *x)), []
  for _ in range(updates):
    batch, reward = sample(state.policy, rng, parts.mesh)
    rewards.append(reward)
    state, _ = step(state, None, batch)
  return rewards, state.policy


if __name__ == "__main__":
  found, _ = train(30)
  print("mean reward of a step:", " ".join(f"{x:.2f}" for x in found[::5]))
