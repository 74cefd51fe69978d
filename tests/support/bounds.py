"""Bounds asked for by name, whose proofs are checked again."""

from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

L2 = Norm(2)


def bound(name, **options):
    return load("lipbench.bounds", name, Bound)(**options)


def rechecked(name, model, shape, norm=L2, domain=None, **options):
    """Return what a bound says of a module, after its proof was checked."""
    network = as_network(model, (shape,) if isinstance(shape, int) else shape)
    value = bound(name, **options).compute(network, norm, domain)
    assert recheck(network, value) == []
    return value
