"""transformers on torch: `generate`, and updates with one row a step."""

import numpy as np
import torch
import transformers
import work as work_lib


class Transformers:
  """See `work.main` for what a side offers.

  `generate` takes whole prompts and returns no log-probs here. It reads the
  prompt anew each turn, as a caller without sessions does; "kept cache" gives
  it back the keys and values of the turn before, which works while all episodes
  of a batch are of one length.
  """

  name = "transformers"

  def __init__(self, work):
    torch.set_num_threads(work.spec["threads"])
    torch.manual_seed(0)
    self._work = work
    self._model = self._load()

  def _load(self):
    # The plain attention that transformers picks by itself: "sdpa".
    return transformers.AutoModelForCausalLM.from_pretrained(
      self._work.model_folder, dtype=torch.float32
    ).eval()

  def versions(self):
    return {
      "torch": torch.__version__,
      "transformers": transformers.__version__,
    }

  def logprobs(self):
    """[N, A] log-probs of the sampled tokens of whole conversations."""
    at = np.flatnonzero(self._work.sampled)
    with torch.no_grad():
      tokens = torch.from_numpy(self._work.tokens).long()
      logits = self._model(input_ids=tokens).logits[:, at - 1]
      return _chosen(logits, tokens[:, at]).numpy()

  def talkers(self, turns):
    rows = {"transformers generate": lambda *args: self._talker(*args, False)}
    if turns > 1:
      rows["transformers generate, kept cache"] = lambda *args: self._talker(
        *args, True
      )
    return rows

  def _talker(self, episodes, turns, sizes, keep):
    del episodes, turns

    def play(shown):
      cache = None

      def answer(prompts, turn):
        nonlocal cache
        del turn
        tokens = torch.from_numpy(prompts).long()
        with torch.inference_mode():
          found = self._model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            past_key_values=cache,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=sizes["sample"],
            pad_token_id=work_lib.PAD,
            eos_token_id=None,
            return_dict_in_generate=True,
          )
        cache = found.past_key_values if keep else None
        return found.sequences[:, tokens.shape[1] :].numpy()

      return work_lib.converse(shown, answer)

    return play

  def updates(self):
    return {
      "transformers + torch, padded row a step": lambda: self._updater(
        "padded"
      ),
      "transformers + torch, unpadded row a step": lambda: self._updater(
        "exact"
      ),
      "transformers + torch, row a trajectory": lambda: self._updater("whole"),
    }

  def _updater(self, rows):
    sizes = self._work.spec["update"]
    model = self._load().train()
    optimizer = torch.optim.AdamW(
      model.parameters(), lr=sizes["learning_rate"], betas=(0.9, 0.99),
      weight_decay=0.0,
    )  # fmt: skip

    def update():
      optimizer.zero_grad(set_to_none=True)
      total = sum(self._backward(model, *micro) for micro in self._micro(rows))
      norm = torch.nn.utils.clip_grad_norm_(
        model.parameters(), sizes["max_grad_norm"]
      )
      optimizer.step()
      return {"loss": float(total), "grad_norm": float(norm)}

    return update

  def _micro(self, rows):
    """Microbatches: tokens, mask or None, first kept logit, actions' places."""
    work, sizes = self._work, self._work.spec["update"]
    count = work.behaviour_logp.shape[1]
    if rows == "whole":
      at = np.flatnonzero(work.sampled)
      yield work.tokens, None, at - 1, at, slice(0, count)
      return
    full = work.tokens.shape[1]
    for turn in range(sizes["turns"]):
      exact = (turn + 1) * (sizes["observe"] + sizes["sample"])
      width = full if rows == "padded" else exact
      tokens, real = work_lib.step_rows(work, turn, width)
      at = np.arange(width - sizes["sample"], width)
      mask = real if rows == "padded" else None
      yield tokens, mask, at - 1, at, work_lib.step_slice(work, turn)

  def _backward(self, model, tokens, real, before, at, part):
    """Adds the gradient of some rows; returns their share of the loss."""
    work, sizes = self._work, self._work.spec["update"]
    tokens = torch.from_numpy(tokens).long()
    extra = {}
    if real is not None:
      real = torch.from_numpy(real)
      extra = {
        "attention_mask": real,
        "position_ids": (real.cumsum(1) - 1).clamp(min=0),
      }
    # Only the places that predict an action are projected to the vocabulary.
    logits = model(
      input_ids=tokens,
      logits_to_keep=torch.from_numpy(before),
      use_cache=False,
      **extra,
    ).logits
    logp = _chosen(logits, tokens[:, at])
    old = torch.from_numpy(work.behaviour_logp[:, part])
    advantage = torch.from_numpy(work.advantage)[:, None]
    ratio = torch.exp(logp - old)
    low, high = 1 - sizes["clip_low"], 1 + sizes["clip_high"]
    kept = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    loss = -kept.sum() / work.behaviour_logp.size
    loss.backward()
    return loss.detach()


def _chosen(logits, tokens):
  """Log-probs of tokens [...] under logits [..., V]."""
  logp = torch.log_softmax(logits.float(), dim=-1)
  return logp.gather(-1, tokens[..., None])[..., 0]


if __name__ == "__main__":
  transformers.logging.set_verbosity_error()
  work_lib.main(Transformers)
