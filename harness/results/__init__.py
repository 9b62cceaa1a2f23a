"""Read, show, compare and publish the results of runs."""
