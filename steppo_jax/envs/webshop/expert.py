"""An expert for generated shops, which knows the goal."""

from steppo_jax import types
from steppo_jax.envs import experts
from steppo_jax.envs.retrieval import bm25
from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import pages as webshop_pages
from steppo_jax.envs.webshop import worlds as webshop_worlds


def shopper(task: types.Task) -> list[str]:
  """Buys what is wanted after a search for its kind and attributes.

  Falls back on `webshop.plan` where that lists the product on no first page.
  """
  calls = webshop_env.plan(task)
  catalog = webshop_worlds.shop(**task.payload["shop"])
  goal = catalog.goals[task.payload["goal"]]
  words = bm25.words(f"{goal.query} {' '.join(goal.attributes)}")
  first = catalog.search(words)[: catalog.page_size]
  if goal.asin not in [product.asin for product in first]:
    return calls
  turn = f"click[{webshop_pages.NEXT}]"
  rest = [call for call in calls[1:] if call != turn]
  return [f"search[{' '.join(words)}]", *rest]


EXPERT = experts.Expert(webshop_worlds, shopper, text="instruction")
