"""Which part of a training step binds: each measured by itself, then together."""
