"""Results as tables, as an HTML page and as records."""
