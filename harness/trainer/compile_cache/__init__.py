"""Compile cache: a run's compiled graphs, so that its next start need not compile them."""

from harness.trainer.compile_cache.cache import kept

__all__ = ["kept"]
