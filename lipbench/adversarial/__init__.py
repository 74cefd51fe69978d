"""Adversarial attacks: projected ascent, losses, and the judge of what they achieve."""
