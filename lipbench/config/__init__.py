"""benchmarks.toml, read and checked: all mistakes at once, each with its line."""
