"""Compile cache: a run's compiled graphs, so that its next start need not compile them."""
