"""Results as tables, as a page and as records."""
