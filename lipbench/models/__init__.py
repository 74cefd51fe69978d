"""Built-in architectures, one per file."""
