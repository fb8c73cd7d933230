"""Engines over HTTP: servers that a run samples with, and gives weights to."""
