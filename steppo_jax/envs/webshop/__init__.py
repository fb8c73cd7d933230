"""The web shop of WebShop: pages, scores, worlds, tasks, expert."""

from steppo_jax.envs.webshop.env import WebShopEnv, load_catalog

__all__ = ["WebShopEnv", "load_catalog"]
