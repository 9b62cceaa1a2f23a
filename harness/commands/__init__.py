"""Verbs of the `harness` command: arguments and help; the code they call is imported late."""
