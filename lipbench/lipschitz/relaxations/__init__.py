"""Interval bounds, linear relaxation, bounds of derivatives, polynomial certificates."""
