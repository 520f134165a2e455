"""Studies: their config, their grid of jobs, and its execution."""
