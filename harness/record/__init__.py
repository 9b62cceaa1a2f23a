"""What a run leaves behind: rows, result, environment, clock accounts, and their mirrors."""
