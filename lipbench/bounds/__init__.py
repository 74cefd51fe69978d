"""Built-in Lipschitz bounds, one published method per file."""
