"""Checkpoints: copy the state of a training to the host, write it in the background, restore it."""
