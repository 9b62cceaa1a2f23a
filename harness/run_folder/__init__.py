"""The folder of a run: its files, and the lease that keeps other jobs out."""
