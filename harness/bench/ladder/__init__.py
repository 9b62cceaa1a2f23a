"""Find the bottleneck of a training step: measure each part alone, then all together."""
