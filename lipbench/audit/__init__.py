"""Somebody else's network: loaded, bounded, attacked, and its claim judged."""
