"""Verbs of the `harness` command: their words, and what they call; imported when they run."""
