"""Policies over HTTP, in the forms that model clients speak."""
