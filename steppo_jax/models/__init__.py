"""Flax modules, used only through init and apply."""
