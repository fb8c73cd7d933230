"""Household games as ALFWorld plays them: engine, worlds, tasks, expert."""

from steppo_jax.envs.household.env import Game, HouseholdEnv

__all__ = ["Game", "HouseholdEnv"]
