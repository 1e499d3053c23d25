"""Trainers: from stored traces to a local student. Torch and TRL are imported here and nowhere else."""
