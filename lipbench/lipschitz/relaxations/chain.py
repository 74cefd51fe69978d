"""Feed-forward chains: dense layers one after the other, and the slopes between them."""

from dataclasses import dataclass

from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.intervals import slopes
from lipbench.lipschitz.relaxations.loop_transformation import SlopeBounds
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks, widths
from lipbench.networks.network import Network
from lipbench.networks.steps import AFFINE, Sandwich, Slope
from lipbench.refused import Refused
from lipbench.threat import Box

_NEURONS = (Slope, Sandwich)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The differences of a network's outputs as W_m D_m-1 W_m-1 ... D_1 W_1 times its inputs'.

    Each D is diagonal, and its entries are slopes of neurons.
    """

    weights: tuple[Matrix, ...]
    """One for each layer; what is affine between two layers of neurons is multiplied out."""
    slopes: SlopeBounds
    """Least and largest slope of the neurons after each layer but the last."""

    @classmethod
    def of(cls, network: NeuronBlocks, domain: Box | None) -> "Chain":
        """Return a network as a chain, with the slopes that it has on a domain.

        Raises:
            Refused: If a layer reads another than the one before, or slopes are not bounded.
        """
        for number, block in enumerate(network.blocks):
            if set(block.reads.matrices) != {number}:
                raise Refused(f"step {block.name!r} reads more than the neurons before it.")
            if not bool((block.lo.isfinite() & block.hi.isfinite()).all()):
                raise Refused(f"step {block.name!r} has slopes that are not bounded.")
        if set(network.output.matrices) != {len(network.blocks)}:
            raise Refused("the output reads more than the neurons of the last layer.")
        reads = [*(block.reads for block in network.blocks), network.output]
        return cls(
            weights=tuple(affine.matrices[number] for number, affine in enumerate(reads)),
            slopes=tuple(slopes(network, domain)),
        )

    @property
    def merged(self) -> "Chain":
        """Return the same with layers multiplied out whose neurons all have one slope."""
        weights, kept = [self.weights[0]], []
        for (lo, hi), after in zip(self.slopes, self.weights[1:], strict=True):
            if bool((lo < hi).any()):
                weights.append(after)
                kept.append((lo, hi))
            else:
                weights[-1] = _product(after, weights[-1].scaled(lo.unsqueeze(1)))
        return Chain(weights=tuple(weights), slopes=tuple(kept))


def refusal(network: Network, most_neurons: int) -> str | None:
    """Return why a network is no chain, or has too wide a layer, as far as its steps tell."""
    if not network.is_chain:
        return "the network branches; this bound needs a chain."
    for step in network.steps:
        if not isinstance(step, (*AFFINE, *_NEURONS)):
            kind = type(step).__name__
            return f"step {step.name!r} ({kind}) is no layer of neurons between two dense ones."
    count = max(widths(network)[1:-1], default=0)
    if count <= most_neurons:
        return None
    return f"a layer has {count} neurons, more than the {most_neurons} of most_neurons."


def _product(left: Matrix, right: Matrix) -> Matrix:
    product = right.times(left.values)
    spread = left.radius @ (right.values.abs() + right.radius)
    return Matrix(values=product.values, radius=product.radius + spread)
