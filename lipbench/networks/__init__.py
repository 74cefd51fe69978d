"""A torch module, read: as primitive steps, and as a pure function of its parameters."""
