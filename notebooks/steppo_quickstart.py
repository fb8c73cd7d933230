# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # StepPO in a quarter of an hour
#
# A small language-model agent learns to tidy rooms: it reads an observation,
# writes a command, and is rewarded when the task is done. StepPO gives credit
# to whole steps, a command each, instead of tokens. This notebook
#
# 1. trains it until its success on games it has not seen has visibly risen
#    (0.39 to 0.57 on CPU with seed 0, on 2026-11-24),
# 2. kills the training with `kill -9` on the way, and goes on in the next cell,
# 3. shows which steps of one episode were better or worse than expected.
#
# It needs no accelerator. Nothing that Colab ships is upgraded.

# %% tags=["parameters"]
# The checkout, or its address: on Colab give the address, and it is cloned.
REPOSITORY = ".."
RUN = "runs/quickstart"
UPDATES = 86
KILL_AT = 43  # the training is killed once so many updates are done
EPISODES = 128  # of an update
EVALUATE_EVERY = 43
EVALUATION_EPISODES = 500
OPTIONS = []  # more options, such as "learner.learning_rate=1e-3"

# %% [markdown]
# ## Setup
#
# Only what is missing is installed; JAX stays as it is.

# %%
import os
import pathlib
import subprocess
import sys
import time

folder = pathlib.Path(REPOSITORY)
if "://" in REPOSITORY:
  folder = pathlib.Path("steppo_jax_checkout")
  if not folder.exists():
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)
folder = folder.resolve()
if not (folder / "steppo_jax").is_dir():
  raise RuntimeError(f"{folder} is no checkout: set REPOSITORY to its address")
os.chdir(folder)
sys.path.insert(0, str(folder))
try:
  import array_record  # noqa: F401
  import flax  # noqa: F401
  import optax  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import sentencepiece  # noqa: F401
  import tensorboardX  # noqa: F401
  import tyro  # noqa: F401
except ImportError:
  subprocess.run(
    [sys.executable, "-m", "pip", "install", "--quiet", "-e", "."], check=True
  )

# In a process of its own: a TPU belongs to one process at a time, and the
# training, which is another, would not get it while the notebook has it.
SHOW = "import jax; print('jax', jax.__version__, jax.devices())"
shown = subprocess.run(
  [sys.executable, "-c", SHOW], check=True, stdout=subprocess.PIPE, text=True
)
print(shown.stdout)

# %% [markdown]
# ## Train, and be killed
#
# The training is a process of its own, started by the command that you would
# type. `metrics.jsonl` grows by one line an update.

# %%
from steppo_jax.storage import metrics

EXPERIMENT = "experiments/household_steppo.py"
ASSIGNMENTS = [
  f"run_dir={RUN}",
  f"num_updates={UPDATES}",
  f"tasks_per_update={EPISODES}",
  f"evaluation.every={EVALUATE_EVERY}",
  f"evaluation.episodes={EVALUATION_EPISODES}",
  *OPTIONS,
]
COMMAND = [sys.executable, "-m", "steppo_jax", "train", EXPERIMENT]
run_dir = pathlib.Path(RUN)


def lines():
  """The metrics so far, one dict an update."""
  file = run_dir / "metrics.jsonl"
  return metrics.read_jsonl(file) if file.exists() else []


def train(kill_at=None):
  """Runs the command to its end, or kills it once an update is done."""
  run_dir.mkdir(parents=True, exist_ok=True)
  log = run_dir.with_suffix(".log")
  seen = -1
  with open(log, "w") as output:
    process = subprocess.Popen(
      COMMAND + ASSIGNMENTS, stdout=output, stderr=subprocess.STDOUT,
      env=os.environ | {"PYTHONPATH": str(folder)},
    )  # fmt: skip
    while process.poll() is None:
      time.sleep(0.5)
      for line in lines():
        if line["update"] > seen:
          seen = line["update"]
          if "eval/success" in line:
            print(f"update {seen}: success {line['eval/success']:.3f}")
      if kill_at is not None and seen >= kill_at:
        process.kill()  # SIGKILL: the process can do nothing about it
        process.wait()
        print(f"killed after update {seen}")
        return
  if process.returncode:
    raise RuntimeError(log.read_text()[-2000:])
  for line in lines():
    if line["update"] > seen and "eval/success" in line:
      print(f"update {line['update']}: success {line['eval/success']:.3f}")


train(kill_at=KILL_AT)

# %% [markdown]
# ## Go on
#
# The same command again. It finds the newest checkpoint and ends with the bits
# of a run that was never killed.

# %%
before = [line["update"] for line in lines()]
train()
after = [line["update"] for line in lines()]
print(f"{before[-1]} updates before the kill, {after[-1]} now, none twice")
assert after == list(range(UPDATES + 1))

# %%
import matplotlib.pyplot as plt

found = lines()
evaluated = [line for line in found if "eval/success" in line]
figure, axes = plt.subplots(figsize=(7, 3.5))
played = [line for line in found if "rollout/success" in line]
axes.plot(
  [line["update"] for line in played],
  [line["rollout/success"] for line in played],
  color="tab:gray", alpha=0.5, label="training games, sampled",
)  # fmt: skip
axes.plot(
  [line["update"] for line in evaluated],
  [line["eval/success"] for line in evaluated],
  "o-", color="tab:blue", label="unseen games, greedy",
)  # fmt: skip
axes.axvline(KILL_AT, color="tab:red", linestyle=":", label="killed")
axes.set(xlabel="update", ylabel="success", ylim=(0, 1))
axes.legend(loc="upper left")
figure.tight_layout()
figure.savefig(run_dir / "success.png")
plt.show()

# %% [markdown]
# ## The steps of one episode
#
# The state is read back from the checkpoint, the agent plays games, and the
# critic says what each step was worth: δₖ = rₖ + γ vₖ₊₁ - vₖ, added up
# backwards with γλ. Advantages are whitened over the steps of all games. The
# training has ended: from here on the notebook has the devices for itself.

# %%
import functools

import jax

from steppo_jax.learner import credit, learner
from steppo_jax.learner import state as learner_state
from steppo_jax.storage import checkpoint, events
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config
from steppo_jax.training import run as training_run

options = config.override(config.load(EXPERIMENT), ASSIGNMENTS, "notebook")
run = training_run.Run(options, run_dir, events.Log(None), lambda _: None)
with checkpoint.Checkpoints(
  run_dir / run_folder.CHECKPOINTS_NAME, options.keep_checkpoints
) as store:
  state, _ = store.restore(None, run.start())
run.hand_over(state.policy, UPDATES)
games = run.players.play(run.episodes(UPDATES))
spec = learner.make_spec(
  run.model, options.algorithm.row(), options.learner, run.mesh,
  num_updates=UPDATES, seed=options.seed,
)  # fmt: skip
batch = learner_state.put_batch(run.pack(games, UPDATES), run.mesh)
assigned = jax.jit(functools.partial(credit.assign, spec))(
  state, None, batch, None
)
table = jax.device_get(assigned.batch.table)
advantage = jax.device_get(assigned.advantages.advantage)
value = jax.device_get(assigned.old_value).reshape(-1)[table.boundary]

# %%
# The longest of the games that were won, or of all.
won = [game for game in games if sum(s.reward for s in game.steps) > 0]
game = max(won or games, key=lambda game: len(game.steps))
mine = table.live & (table.trajectory == games.index(game))
commands = [run.tokenizer.decode(step.response_ids) for step in game.steps]
heights = advantage[mine]
colors = ["tab:green" if h > 0 else "tab:red" for h in heights]

figure, (upper, lower) = plt.subplots(
  2, 1, figsize=(9, 6), sharex=True, height_ratios=(1, 2)
)
at = range(len(commands))
upper.plot(at, value[mine], "o-", color="tab:blue")
upper.set(ylabel="value")
lower.bar(at, heights, color=colors)
lower.axhline(0, color="black", linewidth=0.8)
lower.set(ylabel="advantage")
lower.set_xticks(list(at), commands, rotation=60, ha="right", fontsize=8)
upper.set_title(f"one episode, reward {sum(s.reward for s in game.steps):.1f}")
figure.tight_layout()
figure.savefig(run_dir / "advantages.png")
plt.show()
run.players.close()

# %% [markdown]
# `python -m steppo_jax report runs/quickstart` plots all the curves,
# `python -m steppo_jax algorithms` lists what can be trained instead of StepPO.
