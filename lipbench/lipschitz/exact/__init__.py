"""Exact constants: branch and bound, decided in rational numbers."""
