"""One run: what happens, the training loop, and what both need."""
