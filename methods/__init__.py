"""Built-in training methods, one published method per file."""
