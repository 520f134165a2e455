"""One file per study; each file's docstring states its arguments and results."""
