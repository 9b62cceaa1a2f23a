"""Kill a run repeatedly, and compare its results with those of an undisturbed run, bit by bit."""
