"""Doing the work of a run, and resuming it: claim, train, evaluate, conclude."""
