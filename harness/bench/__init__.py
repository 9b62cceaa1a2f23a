"""Benchmarks: each compares two or more things in interleaved trials, in one run."""
