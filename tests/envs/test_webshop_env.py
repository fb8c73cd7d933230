"""A visit to the shop: calls, pages, rewards, and what is refused."""

import pytest
from marks import some

from steppo_jax import types
from steppo_jax.envs.webshop import catalog as webshop_catalog
from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import pages as webshop_pages
from steppo_jax.envs.webshop import worlds as webshop_worlds


def _task(seed=0, size="small", split="train"):
  return webshop_worlds.generate(seed, split=split, size=size)


def _start(seed=0, **options):
  env, task = webshop_env.WebShopEnv(**options), _task(seed)
  env.reset(task, 0)
  return env, task


def _lamp(asin="a1", **fields):
  base = {
    "name": "desk lamp",
    "brand": "",
    "category": "home",
    "query": "lamp",
    "product_category": "Home › Light",
    "price": 20.0,
    "price_text": "$20.00",
    "description": "It shines.",
    "features": ("it dims",),
    "attributes": ("dimmable",),
    "choices": {"color": ("red", "blue"), "size": ("small", "large")},
  }
  return webshop_catalog.Product(asin=asin, **{**base, **fields})


def _visit(products, page_size=2):
  goal = webshop_catalog.Goal(
    *(0, "train", products[0].asin, "home", "lamp", "a dimmable lamp"),
    *(("dimmable",), {"color": "red"}, 30.0),
  )
  shop = webshop_catalog.Catalog(products, [goal], page_size=page_size)
  return webshop_pages.Visit(shop, 0)


def _pages(visit, *calls):
  out = []
  for call in calls:
    assert visit.play(call), call
    out.append(visit.observation)
  return out


def test_a_visit_leads_over_every_kind_of_page():
  visit = _visit([_lamp(f"a{n}") for n in range(1, 6)])
  line = "a1 | desk lamp | $20.00"
  assert visit.commands == ["search[words]"]
  first, second, back = _pages(
    visit, "search[a Lamp!]", "click[next >]", "click[< prev]"
  )
  assert first == f"Results 1 to 2 of 5 for: a lamp\n{line}\n" + line.replace(
    "a1", "a2"
  )
  assert second.startswith("Results 3 to 4 of 5 for: a lamp\na3 |")
  assert back == first
  assert visit.commands == [
    *("search[words]", "click[a1]", "click[a2]", "click[next >]"),
    "click[back to search]",
  ]
  pages = _pages(
    visit,
    "click[A1]",
    "click[Red]",
    "click[description]",
    "click[< prev]",
    "click[features]",
    "click[< prev]",
    "click[reviews]",
    "click[back to search]",
  )
  empty = f"{line}\ncolor (not chosen): red, blue\nsize (not chosen)"
  chosen = f"{line}\ncolor (red): red, blue\nsize (not chosen): small, large"
  assert pages[0].startswith(empty)
  assert pages[1:] == [
    chosen,
    f"{line}\ndescription:\nIt shines.",
    chosen,
    f"{line}\nfeatures:\nit dims",
    chosen,
    f"{line}\nreviews:\naverage rating: none",
    "Welcome to the shop. You can search for words.",
  ]
  _pages(visit, "search[lamp]", "click[a1]")
  assert visit.observation.startswith(empty)
  assert visit.commands == [
    *("search[words]", "click[description]", "click[features]"),
    *("click[reviews]", "click[red]", "click[blue]", "click[small]"),
    *("click[large]", "click[< prev]", "click[back to search]"),
    "click[buy now]",
  ]
  _pages(visit, "click[red]", "click[buy now]")
  assert visit.bought
  assert visit.commands == []
  assert visit.score == pytest.approx((1.0, 1.0, True))
  assert not visit.play("search[lamp]")


def test_a_search_that_finds_nothing_says_so():
  visit = _visit([_lamp()])
  assert _pages(visit, "search[zebra]") == ["Nothing was found for: zebra"]
  assert visit.commands == ["search[words]", "click[back to search]"]


def test_a_value_with_two_meanings_is_offered_with_its_option():
  choices = {"color": ("red", "reviews"), "trim": ("red", "blue")}
  visit = _visit([_lamp(choices=choices)])
  _pages(visit, "search[lamp]", "click[a1]")
  shown = [c for c in visit.commands if "red" in c or "blue" in c or ":" in c]
  assert shown == [
    *("click[color: red]", "click[color: reviews]", "click[trim: red]"),
    "click[blue]",
  ]
  assert not visit.play("click[red]")
  _pages(visit, "click[trim: red]", "click[Trim:  Blue]", "click[color: red]")
  assert "trim (blue)" in visit.observation
  assert "color (red)" in visit.observation


@pytest.mark.parametrize(
  "call",
  [
    *("", "look", "search", "search[]", "search[ !? ]", "click[]", "buy now"),
    *("click[buy now]", "click[< prev]", "click[p1]", "search[lamp", "\x00"),
    *("search lamp", "find[lamp]", "click[next >]", "<|im_end|>", "</s>"),
    *("x search[lamp]", "search[lamp] y", "click[features]", "\ud800"),
    "search[" + "lamp " * 20_000 + "]",
    "[" * 100_000,
  ],
)
def test_a_call_that_is_not_possible_costs_the_penalty_alone(call):
  env, _ = _start(invalid_penalty=0.25)
  before, page = env.visit.anchor(), env.visit.observation
  step = env.step(call)
  assert step.observation == f"That is not possible here.\n{page}"
  assert (step.reward, step.terminated) == (-0.25, False)
  assert step.info["invalid"]
  assert not step.info["won"]
  assert (env.visit.anchor(), env.visit.observation) == (before, page)


@pytest.mark.parametrize("size", some("small", slow=webshop_worlds.SIZES))
def test_plans_win_in_the_golden_number_of_steps(size):
  env = webshop_env.WebShopEnv()
  for seed in range(30):
    for split in webshop_worlds.SPLITS:
      task = _task(seed, size, split)
      step = env.reset(task, 0)
      rewards = []
      for call in webshop_env.plan(task):
        shown = step.info["commands"]
        assert call in shown or call.startswith("search[")
        step = env.step(call)
        rewards.append(step.reward)
      assert rewards == [0.0] * (task.golden_steps - 1) + [10.0]
      assert step.terminated
      assert step.info["won"]
      assert step.info["scores"] == pytest.approx({"small": 1, "official": 1})


def test_the_task_stands_at_the_end_of_the_first_page():
  env, task = _start()
  first = env.reset(task, 0)
  asked = task.payload["instruction"]
  assert first.observation.endswith(f"\n\nYour task is to: {asked}")
  assert (first.reward, first.terminated, first.truncated) == (0, False, False)


def test_rewards_follow_the_options():
  task = _task(3)
  *calls, buy = webshop_env.plan(task)
  half = calls[:2]  # Nothing is chosen.
  for options, whole, part in (
    ({}, 10.0, 0.0),
    ({"success_reward": 1.0, "rule": "small"}, 1.0, 0.0),
    # Two attributes and the price of five parts; 0.35 + 0.30 + 0.10.
    ({"reward": "score"}, 1.0, 0.6),
    ({"reward": "score", "rule": "small"}, 1.0, 0.75),
  ):
    env = webshop_env.WebShopEnv(**options)
    for chosen, reward in ((calls, whole), (half, part)):
      env.reset(task, 0)
      for call in chosen:
        assert env.step(call).reward == 0.0
      step = env.step(buy)
      assert step.reward == pytest.approx(reward)
      assert step.info["won"] == (chosen is calls)
      with pytest.raises(RuntimeError, match="episode is over"):
        env.step("search[lamp]")


def test_anchors_tell_pages_apart_and_not_how_they_were_found():
  visit = _visit([_lamp(), _lamp("a2", name="floor lamp")])

  def anchor(*calls):
    visit.reset()
    _pages(visit, *calls)
    return visit.anchor()

  listed = anchor("search[desk lamp]")
  assert listed == anchor("search[lamp desk]")
  assert listed != anchor("search[floor lamp]")
  item = anchor("search[lamp]", "click[a1]", "click[red]", "click[small]")
  assert item == "item a1, color: red, size: small"
  assert item == anchor(
    *("search[desk]", "click[a1]", "click[small]", "click[blue]"), "click[red]"
  )
  assert anchor() == "start"
  assert anchor("search[desk]", "click[a1]", "click[features]") == (
    "part features a1"
  )


@pytest.mark.parametrize(
  ("payload", "message"),
  [
    ({}, "needs 'shop' and 'goal'"),
    ({"shop": {}, "goal": 0}, "needs 'shop' and 'goal'"),
    ({"shop": 5, "goal": 0}, "needs 'shop' and 'goal'"),
    ({"shop": {"data_dir": "nowhere"}, "goal": 0}, "is not a folder"),
    (
      {"shop": {"size": "tiny", "split": "train", "number": 900}, "goal": 0},
      "number must be below 256",
    ),
    (
      {"shop": {"size": "huge", "split": "train", "number": 0}, "goal": 0},
      "size must be one of tiny",
    ),
    ({"goal": 999}, "goal must be below"),
    ({"goal": "0"}, "goal must be an integer"),
    ({"instruction": "buy a castle"}, "the data have changed"),
  ],
)
def test_a_broken_task_is_named(payload, message):
  task = _task(size="tiny")
  whole = {**task.payload, **payload} if payload.keys() - {"shop"} else payload
  broken = types.Task("broken/1", "webshop", "home", whole)
  with pytest.raises(ValueError, match=rf"task broken/1: .*{message}"):
    webshop_env.WebShopEnv().reset(broken, 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rule": "fair"}, "rule must be one of official, small"),
    ({"reward": "tips"}, "reward must be one of success, score"),
    ({"success_reward": 0.0}, "success_reward must be above 0"),
    ({"invalid_penalty": -1.0}, "invalid_penalty must be at least 0"),
    ({"invalid_penalty": float("nan")}, "invalid_penalty must be at least 0"),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    webshop_env.WebShopEnv(**options)


def test_nothing_can_be_done_before_a_reset():
  env = webshop_env.WebShopEnv()
  with pytest.raises(RuntimeError, match="call reset"):
    env.step("search[lamp]")
