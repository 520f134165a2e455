"""Detection of poisoned rows: pure functions of what a defender holds."""
