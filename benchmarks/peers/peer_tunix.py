"""Google Tunix: its sampler, and the step of its agentic GRPO learner."""

from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import work as work_lib
from tunix.generate import sampler as sampler_lib
from tunix.models.llama3 import model as model_lib
from tunix.models.llama3 import params as params_lib
from tunix.rl import algo_core, common, trainer
from tunix.rl.agentic import agentic_grpo_learner, agentic_rl_learner
from tunix.sft import peft_trainer


class Numbers:
  """Stands for a tokenizer: text is token ids with spaces between."""

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, ids):
    del ids
    return ""

  def bos_id(self):
    return 0  # None is put in front.

  def eos_id(self):
    return -1  # Never sampled: all sides decode as many tokens.

  def pad_id(self):
    return work_lib.PAD


class Tunix:
  """See `work.main` for what a side offers.

  The sampler takes whole prompts, reads each anew and has one cache length,
  here the longest conversation; it is given the exact length of the prompts, so
  that it pads nothing. The learner's step is its trainer with its GRPO loss on
  one row a trajectory, without reference policy; building the rows is not
  timed.
  """

  name = "tunix"

  def __init__(self, work):
    self._work = work
    model = work.spec["model"]
    self._config = model_lib.ModelConfig(
      num_layers=model["num_layers"],
      vocab_size=model["vocab_size"],
      embed_dim=model["width"],
      hidden_dim=model["mlp_width"],
      num_heads=model["num_heads"],
      head_dim=model["head_dim"],
      num_kv_heads=model["num_kv_heads"],
      # Not read by its attention, which rotates with base 1e6 whatever it says.
      rope_theta=int(model["rope_theta"]),
      norm_eps=model["norm_eps"],
      weight_tying=True,
    )

  def _load(self):
    return params_lib.create_model_from_safe_tensors(
      str(self._work.model_folder), self._config, dtype=jnp.float32
    )

  def versions(self):
    names = ("google-tunix", "jax", "flax")
    return {name: metadata.version(name) for name in names}

  def logprobs(self):
    """[N, A] log-probs of the sampled tokens, by the learner's function."""
    from flax import nnx

    prompt, completion, mask = self._rows()
    logp = common.compute_per_token_logps(
      *nnx.split(self._load()), jnp.array(prompt), jnp.array(completion),
      work_lib.PAD, -1,
    )  # fmt: skip
    return np.asarray(logp)[:, mask]

  def _rows(self):
    """First prompts, the rest of each conversation, where it was sampled."""
    start = self._work.spec["update"]["observe"]
    tokens = self._work.tokens
    return tokens[:, :start], tokens[:, start:], self._work.sampled[start:]

  def talkers(self, turns):
    del turns
    return {"Tunix sampler": self._talker}

  def _talker(self, episodes, turns, sizes):
    del episodes
    config = self._config
    sampler = sampler_lib.Sampler(
      self._load(),
      Numbers(),
      sampler_lib.CacheConfig(
        cache_size=turns * (sizes["observe"] + sizes["sample"]),
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
      ),
    )

    def answer(prompts, turn):
      found = sampler(
        [" ".join(map(str, prompt)) for prompt in prompts],
        max_generation_steps=sizes["sample"],
        max_prompt_length=prompts.shape[1],
        return_logprobs=True,
        eos_tokens=[-1],
        temperature=1.0,
        top_p=1.0,
        seed=turn,
      )
      return np.stack(found.tokens)

    return lambda shown: work_lib.converse(shown, answer)

  def updates(self):
    return {"Tunix agentic step, row a trajectory": self._updater}

  def _updater(self):
    sizes = self._work.spec["update"]
    prompt, completion, mask = self._rows()
    old = np.zeros(completion.shape, np.float32)
    old[:, mask] = self._work.behaviour_logp
    example = agentic_rl_learner.TrainExample(
      prompt_ids=jnp.array(prompt),
      prompt_mask=jnp.array(prompt != work_lib.PAD),
      completion_ids=jnp.array(completion),
      completion_mask=jnp.array(np.broadcast_to(mask, completion.shape)),
      advantages=jnp.array(self._work.advantage),
      ref_per_token_logps=None,
      old_per_token_logps=jnp.array(old),
    )
    config = agentic_grpo_learner.GRPOConfig(
      num_generations=len(prompt),
      beta=0.0,
      epsilon=sizes["clip_low"],
      epsilon_high=sizes["clip_high"],
      loss_agg_mode="token-mean",
    )
    config.temperature = 1.0
    learner = trainer.Trainer(
      self._load(),
      optax.chain(
        optax.clip_by_global_norm(sizes["max_grad_norm"]),
        optax.adamw(sizes["learning_rate"], b2=0.99, weight_decay=0.0),
      ),
      peft_trainer.TrainingConfig(eval_every_n_steps=1_000_000),
      custom_checkpoint_metadata_fn=dict,
    )
    learner.with_loss_fn(
      lambda model, train_example, algo_config: algo_core.grpo_loss_fn(
        model, train_example, algo_config, pad_id=work_lib.PAD, eos_id=-1
      ),
      has_aux=True,
    )
    learner.with_gen_model_input_fn(
      lambda x: {"train_example": x, "algo_config": config}
    )
    step, _ = learner.jit_train_and_eval_step()

    def update():
      loss, _, norm = step(example)
      return {"loss": float(loss), "grad_norm": float(norm)}

    return update


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  work_lib.main(Tunix)
