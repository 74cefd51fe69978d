"""Input scale: by how much a normalisation changes the units that the first layer sees."""

from collections.abc import Iterator
from typing import Any

from lipbench.networks.network import Network
from lipbench.networks.steps import Linear, Scale
from lipbench.refused import Refused


def input_scale(network: Network | Refused) -> float | None:
    """Return the smallest std of a normalisation before the first layer, None without one.

    A constant in the units that the first layer sees is the one in pixel units times it, if all
    that the network reads is normalised.
    """
    if isinstance(network, Refused):
        return None
    last, factor = 0, None
    for number, step in enumerate(_before_first_layer(network)):
        if isinstance(step, Scale):
            last, factor = number, step.factor if factor is None else factor * step.factor
    if factor is None:
        return None
    behind = network.steps[last + 1 :]
    read = [network.output, *(i for later in behind for i in later.inputs)]
    return 1 / float(factor.abs().max()) if min(read) > last else None


def _before_first_layer(network: Network) -> Iterator[Any]:
    for step in network.steps:
        if isinstance(step, Linear):
            return
        yield step
