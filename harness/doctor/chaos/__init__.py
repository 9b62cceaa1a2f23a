"""Kill a run again and again, and compare its bits with an undisturbed one's."""
