"""What environments showed, drawn in Chromium; `make test-browser`."""

import json

import chromium
import numpy as np
import pytest
import recorded_runs

from steppo_jax import types
from steppo_jax.viewer import export, runs

pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(
    chromium.find() is None,
    reason="no Chromium on this machine: apt-get install chromium",
  ),
]

NASTY = "<img src=x onerror=document.title=1><script>document.title=2</script>"
# By environment: the first sight, the later one, what the policy answers.
EPISODES = {
  "webshop": (
    "Welcome to the shop. You can search for words.\n\nYour task is to: buy it",
    f"b01 | <i>Mug</i> {NASTY} | $12.50\ncolor (not chosen): red, <u>blue</u>",
    "click[red]",
  ),
  "paper_search": (
    "Your task is to: find papers. All of them",
    f"[p1] (0.75) On {NASTY}\n[p2] (0.10) On mugs\nand 3 more",
    "<expand>p1</expand>",
  ),
  "search_qa": (
    "Your task is to: answer the question. Who?",
    f"Mug: A mug is {NASTY}.\nCup: A cup is small.",
    "<answer>nobody</answer>",
  ),
  "household": (
    "You are in the middle of a room. Looking quickly around you, you see a "
    "cabinet 1, a drawer 2, and a shelf 3.\n\nYour task is to: clean a mug.",
    "On the shelf 3, you see a mug 1, and a <u>pan</u> 2.\n"
    "Possible: look, take mug 1 from shelf 3",
    "take mug 1 from shelf 3",
  ),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """An exported page of one episode of each environment."""
  folder = tmp_path_factory.mktemp("scenes")
  run = recorded_runs.make(folder / "run", updates=1)
  for number, (env, (first, later, said)) in enumerate(EPISODES.items()):
    task = types.Task(f"{env}-1", env, "any", {})
    one = recorded_runs.episode(
      env, task, steps=2, rng=np.random.default_rng(0), seen=(first, later),
      said=(said,),
    )  # fmt: skip
    recorded_runs.write_journal(run, number + 1, [one])
  shown = runs.Run(
    0, run, cache=folder / "cache",
    load_tokenizer=lambda _: recorded_runs.tokenizer(),
  )  # fmt: skip
  export.write(folder / "out", [shown], uids=list(EPISODES))
  shown.close()
  return folder / "out" / "index.html"


@pytest.fixture(scope="module")
def page(shared):
  with chromium.page() as page:
    page.open(shared.as_uri())
    page.until("document.querySelectorAll('a.open').length === 4")
    yield page


def shown(page, shared, env):
  page.open("about:blank")
  page.errors.clear()
  page.open(shared.as_uri())
  page.until("document.querySelectorAll('a.open').length === 4")
  page.run(
    "[...document.querySelectorAll('a.open')].find("
    f"a => a.textContent === {json.dumps(env)}).click()"
  )
  page.until("document.querySelectorAll('.step:not(.after)').length === 2")


@pytest.mark.parametrize(
  ("env", "parts"),
  [
    ("webshop", ["$12.50", "<i>Mug</i>", "not chosen", "<u>blue</u>",
                 "buy now", "description"]),
    ("paper_search", ["p1", "0.75", "On mugs", "and 3 more"]),
    ("search_qa", ["Mug", "Cup", "A cup is small."]),
    ("household", ["On the shelf 3", "a mug 1", "a <u>pan</u> 2",
                   "2 possible commands", "look"]),
  ],
)  # fmt: skip
@pytest.mark.parametrize("width", [360, 1600])
def test_a_sight_is_drawn_of_text_as_text(
  page, shared, env, parts, width, tmp_path
):
  page.size(width, 900, dark=width < 600)
  shown(page, shared, env)
  last = "[...document.querySelectorAll('.scene')].at(-1)"
  text = page.run(f"{last}.textContent")
  for part in parts:
    assert part in text
  if env != "household":
    assert NASTY in text
  inside = ".scene img, .scene script, .scene i, .scene u, .scene button"
  assert page.run(f"document.querySelectorAll('{inside}').length") == 0
  assert page.run("document.title") not in ("1", "2")
  wide = "document.documentElement.scrollWidth <= innerWidth"
  assert page.run(wide)
  assert not page.errors
  page.run(f"{last}.scrollIntoView({{block: 'center'}})")
  page.picture(tmp_path / f"{env}-{width}.png")


@pytest.mark.parametrize(
  ("env", "taken"),
  [("webshop", "red"), ("household", "take mug 1 from shelf 3")],
)
def test_what_was_answered_is_marked(page, shared, env, taken):
  shown(page, shared, env)
  found = page.run(
    "[...document.querySelectorAll('.scene .taken')].map(o => o.textContent)"
  )
  assert found == [taken]
