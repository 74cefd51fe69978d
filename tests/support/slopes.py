"""Slopes of neurons on a whole domain, from the pre-activation bounds on subdomains."""

import torch

from lipbench.lipschitz.relaxations.preactivations import on_subdomains


def undecided(network):
    """Return the sides that make up one subdomain, the whole domain."""
    return torch.zeros(sum(map(len, network.blocks)), 1, dtype=torch.int64)


def crown_slopes(network, domain):
    """Return the least and the largest slope of each neuron between inputs in a domain."""
    slopes = on_subdomains(network, domain, undecided(network)).slopes
    return [(lo.squeeze(1), hi.squeeze(1)) for lo, hi in slopes]
