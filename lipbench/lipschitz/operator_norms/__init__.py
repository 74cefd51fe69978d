"""Operator norms of single layers, and their product."""
