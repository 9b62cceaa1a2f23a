"""Checks of a machine before a run, and trials that kill a run and compare its bits."""
