"""What models of one's own may return, and what of it is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_updates

import steppo_jax as sj

CONFIG = dataclasses.replace(toy_updates.CONFIG, actor_epochs=1)
log_probs, values = toy_updates.log_probs, toy_updates.values


def _parts(name, *functions, **changes):
  row = dataclasses.replace(sj.ALGORITHMS[name], kl_coef=0.0, **changes)
  return sj.make_parts(sj.Model(*functions), row, CONFIG)


def _trained(values):
  """The critic of `vetta` before and after an update, with plain steps."""
  parts = _parts("vetta", log_probs, values)._replace(
    policy_optimizer=optax.sgd(0.1), critic_optimizer=optax.sgd(0.1)
  )
  start = toy_updates.start(parts)
  step = jax.jit(functools.partial(sj.update, parts))
  state, metrics = jax.device_get(step(start, None, toy_updates.batch()))
  return start.critic[0], state.critic[0], metrics


@pytest.mark.slow
def test_one_array_of_values_is_that_of_steps_and_that_of_tokens():
  before, after, metrics = _trained(values)
  same = _trained(lambda critic, rows: (values(critic, rows),) * 2)
  jax.tree.map(np.testing.assert_array_equal, (after, metrics), same[1:])
  # No prompt ends with id 0 and no answer holds it: its value is never read.
  moved = np.asarray(after - before)
  assert moved[0] == 0
  assert (moved[1:] != 0).all()


def _refused(message, parts):
  start = toy_updates.start(parts)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      lambda state: sj.update(
        parts, state, toy_updates.reference(), toy_updates.batch(reasoning=True)
      ),
      start,
    )


def test_outputs_of_other_shapes_are_refused_by_name():
  short = lambda critic, rows: values(critic, rows)[:, 1:]
  whole = lambda critic, rows: rows.tokens
  two = lambda critic, rows: (values(critic, rows),) * 2
  three = lambda critic, rows: (values(critic, rows),) * 3
  lopsided = lambda critic, rows: (values(critic, rows), jnp.float32(0))
  for name, function, message in (
    ("steppo", short, r"Model.values .* \(2, 16\), not float32\[2, 15\]"),
    (
      "steppo",
      whole,
      r"Model.values .* floats .* not int32\[2, 16\]",
    ),
    ("steppo", two, r"Model.values .* not 2 of them: float32\[2, 16\], f"),
    ("vetta", three, r"Model.values .* two arrays .* not 3 of them"),
    ("vetta", lopsided, r"Model.values .* not float32\[\]"),
  ):
    _refused(message, _parts(name, log_probs, function))
  alone = lambda policy, rows: log_probs(policy, rows)[0]
  summed = lambda policy, rows: (log_probs(policy, rows)[0], jnp.float32(0))
  for function, message in (
    (alone, r"Model.log_probs is to return two arrays .* not float32\[2, 16\]"),
    (summed, r"Model.log_probs is to return floats .* not float32\[\]"),
  ):
    _refused(message, _parts("grpo", function))


def test_a_row_with_weights_of_tokens_reads_energies():
  with pytest.raises(ValueError, match=r"give Model.*log_probs_and_energies="):
    _parts("actfocus_grpo", log_probs)
  parts = _parts(
    "actfocus_grpo", log_probs, None, toy_updates.log_probs_and_energies
  )
  given = (
    toy_updates.start(parts),
    toy_updates.reference(),
    toy_updates.batch(reasoning=True),
  )
  found = jax.eval_shape(lambda *x: sj.update(parts, *x)[1], *given)
  assert "reference/focus_weight" in found
  wrong = _parts("actfocus_grpo", log_probs, None, lambda *_: 0)
  _refused(r"Model.log_probs_and_energies .* not int", wrong)
