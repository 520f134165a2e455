"""Studies: their config, their grid, and what runs it."""
