"""Layers that networks are built of, and how their weights are parametrised."""
