"""Data: images on disk, their stream, and the batches that a run trains on."""
