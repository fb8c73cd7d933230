"""Tokenizers, demonstrations and task lists."""
