"""Measurements that a user would repeat: each compares two things in turns, in one run."""
