"""Views of what environments showed, against the environments themselves."""

import hypothesis
import hypothesis.strategies as st
import pytest

from steppo_jax.envs import base, experts
from steppo_jax.envs.household import env as household
from steppo_jax.envs.papers import env as papers
from steppo_jax.envs.questions import env as questions
from steppo_jax.envs.webshop import env as webshop
from steppo_jax.envs.webshop import pages
from steppo_jax.viewer import scenes


def world(name, seed, size="tiny"):
  """A generated task of an environment."""
  expert: experts.Expert = base.attribute(base.ENVS[name].expert)
  return expert.worlds.generate(seed, split="train", size=size)


def see(name, observation, answer=""):
  return scenes.of_step(name, observation, answer)


def clicks(scene):
  """What the view says can be clicked."""
  names = [*scene.get("buttons", ()), *(p["id"] for p in scene["products"])]
  return names + [v for o in scene["options"] for v in o["values"]]


@hypothesis.given(st.integers(0, 20), st.randoms(use_true_random=False))
@hypothesis.settings(max_examples=15, deadline=None)
def test_every_page_of_a_shop_is_drawn_as_it_can_be_clicked(seed, draw):
  shop = webshop.WebShopEnv()
  seen = shop.reset(world("webshop", seed), 0)
  assert see("webshop", seen.observation)["page"] == "start"
  for _ in range(12):
    possible = [c for c in shop.visit.commands if "buy now" not in c]
    words = " ".join(draw.choice(shop.visit.goal.instruction.split()))
    answer = draw.choice([*possible[1:], f"search[{words}]", "nonsense"])
    seen = shop.step(answer)
    scene = see("webshop", seen.observation)
    assert scene["kind"] == "shop"
    assert scene["refused"] == seen.info["invalid"]
    scene = {"options": (), "products": (), "buttons": ()} | scene
    told = {f"click[{name}]" for name in clicks(scene)}
    labelled = {c for c in shop.visit.commands if c != pages.SEARCH}
    # Options whose labels are not their values are few, and are known.
    assert told - labelled <= {f"click[{o}]" for o in _values(scene)}
    if not any(", " in o or ": " in o for o in _values(scene)):
      assert labelled - told <= {c for c in labelled if ": " in c}
    product = shop.visit._product
    if product is not None:
      assert scene["id"] == product.asin.lower()
      assert scene["price"] == product.price_text


def _values(scene):
  return [v for option in scene["options"] for v in option["values"]]


def test_a_product_its_options_and_what_was_taken():
  text = (
    "b01 | Mug | blue, 2 | $12.50\n"
    "color (not chosen): red, blue\nsize (us) (large): small, large"
  )
  scene = see("webshop", text, "<think>click[red]</think>click[ Blue ]")
  assert (scene["title"], scene["price"]) == ("Mug | blue, 2", "$12.50")
  assert scene["options"] == [
    {"name": "color", "chosen": "not chosen", "values": ["red", "blue"]},
    {"name": "size (us)", "chosen": "large", "values": ["small", "large"]},
  ]
  assert scene["buttons"][-1] == pages.BUY
  assert see("webshop", text, "click[Blue]")["taken"] == ["click[blue]"]
  assert see("webshop", text, "<think>click[red]</think>")["taken"] == []


def test_a_purchase_and_a_search_without_results():
  shop = webshop.WebShopEnv()
  task = world("webshop", 3)
  shop.reset(task, 0)
  for call in webshop.plan(task):
    seen = shop.step(call)
  assert see("webshop", seen.observation)["page"] == "end"
  scene = see("webshop", "Nothing was found for: a b")
  assert (scene["query"], scene["products"]) == ("a b", [])


def test_papers_that_were_found_are_listed_with_their_scores():
  env = papers.PaperSearchEnv()
  task = world("paper_search", 1)
  first = env.reset(task, 0)
  assert see("paper_search", first.observation) is None
  call = f"<search>{task.payload['question']}</search>"
  scene = see("paper_search", env.step(call).observation)
  assert [(p["id"], p["score"]) for p in scene["found"]] == [
    (id_, env._pool[id_]) for id_ in env.ranked()
  ]
  assert scene["found"]
  again = see("paper_search", env.step(call).observation)
  assert (again["found"], again["notes"]) == ([], [papers.REPEATED])


def test_paragraphs_that_were_found_are_listed_with_their_titles():
  env = questions.SearchQAEnv()
  task = world("search_qa", 1)
  assert see("search_qa", env.reset(task, 0).observation) is None
  seen = env.step(f"<search>{task.payload['question']}</search>")
  scene = see("search_qa", seen.observation)
  shown = [
    one["text"] if "title" not in one else f"{one['title']}: {one['text']}"
    for one in scene["found"]
  ]
  assert shown == seen.observation.split("\n")
  wrong = see("search_qa", env.step("what?").observation)
  assert (wrong["found"], wrong["notes"]) == ([], [questions.INVALID])


def test_a_room_has_its_places_and_a_prompt_its_commands():
  env = household.HouseholdEnv()
  seen = env.reset(world("household", 0), 0)
  commands = seen.info["commands"]
  goal = next(c for c in commands if c.startswith("go to"))
  text = (
    f"Your task: win.\nYou see: {seen.observation}\nBefore that:\n"
    "You saw: On the shelf 9, you see a ghost 1.\nYou answered: look\n"
    f"This is step 1.\nPossible: {', '.join(commands)}\nAnswer."
  )
  scene = see("household", text, goal)
  assert scene["commands"] == commands
  assert scene["taken"] == [goal]
  things = {t for place in scene["places"] for t in place["things"]}
  # A place is "a cabinet 1" where it is seen, and "cabinet 1" in a command.
  named = {c.removeprefix("go to ") for c in commands if "go to" in c}
  assert named <= {t.partition(" ")[2] for t in things}
  assert "a ghost 1" not in things
  empty = see("household", "On the shelf 3, you see nothing.")
  assert empty["places"] == [{"where": "On the shelf 3", "things": []}]


def test_of_several_sights_in_one_prompt_the_newest_is_drawn():
  text = "You see: b1 | Old | $1\n\nYou see: b2 | New | $2\nPossible: x, y\n"
  scene = see("webshop", text)
  assert (scene["id"], scene["commands"]) == ("b2", ["x", "y"])


PARTS = (
  "b01 | Mug | $1", "color (x): ", "description:", "Results 1 to 2 of 3 for: a",
  "[p1] (0.50) T", "On it, you see a b.", "You see: ", "Possible: ", "\n",
  pages.REFUSED, "<script>", "\x1b[31m", " | ", "(", "): ",
)  # fmt: skip


@pytest.mark.parametrize("name", [*scenes._KINDS, "another"])
@hypothesis.given(st.lists(st.one_of(st.sampled_from(PARTS), st.text())))
@hypothesis.settings(max_examples=60, deadline=None)
def test_text_of_any_form_has_a_view_or_none(name, parts):
  text = "".join(parts)
  scene = see(name, text, text)
  assert scene is None or {"kind", "commands", "taken"} <= set(scene)
