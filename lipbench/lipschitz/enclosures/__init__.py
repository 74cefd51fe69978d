"""Enclosures: outputs of a network, and how far they may be from exact ones."""
