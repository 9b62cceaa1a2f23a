"""Start runs: the script that trains, and what torchrun, Slurm and submitit need for it."""
