"""Compare settings, versions of the code and numbers of ranks in interleaved trials."""
