"""One file per study; each file's docstring says what it takes and what it gave."""
