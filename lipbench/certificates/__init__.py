"""Built-in certificates of robustness, one published method per file."""
