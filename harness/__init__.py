"""The reference ImageNet benchmark harness."""

__version__ = "0.1.0"
