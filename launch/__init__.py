"""What starts a run: the command that trains, and what Slurm, torchrun and submitit need of it."""
