"""Checkpoints: copy the state of a training to the host, write it in the background, restore it."""

from harness.checkpoint.saver import Saver
from harness.checkpoint.state import Staging, State, capture, restore
from harness.checkpoint.store import Found, newest, publish, save_atomic

__all__ = [
    "Found",
    "Saver",
    "Staging",
    "State",
    "capture",
    "newest",
    "publish",
    "restore",
    "save_atomic",
]
