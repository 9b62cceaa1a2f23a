"""Runs in W&B: read from its server, or from what its client wrote offline."""
