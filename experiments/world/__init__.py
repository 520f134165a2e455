"""Tasks, and who holds which text and models in a threat scenario."""
