"""Guide and task lists of the web shop: generated shops, or WebShop's goals."""

from steppo_jax.envs import base, guides, tasks
from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import worlds as webshop_worlds

GUIDE = guides.Guide(
  part=(
    "You are a customer of a web shop. You search for words, open products, "
    "choose the options that are asked for, and buy the product that has "
    "everything that is wanted at a price below the limit."
  ),
  answer=(
    "Answer with exactly one call: search[words], or click[...] with what is "
    "written on the page."
  ),
  tools=guides.env_step("searches or clicks", "search[green desk lamp]"),
  unwrap="env_step",
)


def shopping(
  size: str, data_dir: str | None = None, by: str = "product"
) -> base.TaskList:
  """Customers of generated shops, or WebShop's goals from a folder.

  Args:
    size: Size of generated shops.
    data_dir: See `webshop.load_catalog`.
    by: How real goals are split, "product" or "index"; see
      `webshop.load_tasks`.
  """
  if by not in webshop_env.SPLITS:
    raise ValueError(f"by={by!r} is none of {', '.join(webshop_env.SPLITS)}")
  if data_dir is None:
    return tasks.GeneratedTasks(webshop_worlds, size)
  load = lambda split: webshop_env.load_tasks(data_dir, split, by=by)
  return tasks.RecordedTasks(load, "train", lambda: webshop_env.SPLITS[by])
