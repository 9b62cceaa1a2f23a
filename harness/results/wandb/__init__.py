"""Runs in W&B: read from its server, or from what its client wrote offline."""

ADDRESS = "wandb:"
"""What an address of runs there begins with."""
