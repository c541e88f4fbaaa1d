"""Runs on a Slurm cluster: the job script, its submission, and what the script calls on the way."""
