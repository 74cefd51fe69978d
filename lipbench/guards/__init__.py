"""Guards around the code of plugins: they change nothing that others compute with."""
