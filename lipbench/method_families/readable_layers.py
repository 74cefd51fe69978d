"""Requirements of methods on layers: can they be read, and can they be set."""

from torch import nn

from lipbench.networks.net import Net, Skeleton
from lipbench.networks.steps import Linear
from lipbench.refused import Refused


def read(model: nn.Module, input_shape: tuple[int, ...]) -> Net:
    """Return the network of a module, with its numbers.

    Raises:
        Refused: If two layers share a parameter.
    """
    params = {name: value.detach() for name, value in model.named_parameters()}
    return Net(Skeleton(model, input_shape), params, dict(model.named_buffers()))


def unreadable_reason(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    kind: type[Linear] | tuple[type[Linear], ...] = Linear,
    writes: bool = False,
) -> str | None:
    """Return why a method has no rule for a network's linear layers, or None if it has.

    Args:
        model: The network.
        input_shape: Shape of one input.
        kind: What the method has a rule for.
        writes: Whether it sets weights, which then must be parameters and not made from others.
    """
    try:
        net = read(model, input_shape)
        layers = net.layers
    except Refused as refusal:
        return str(refusal).rstrip(".")
    for layer in layers:
        if not isinstance(layer, kind):
            return f"layer {layer.name!r} is a {type(layer).__name__}, for which it has no rule"
        if writes and layer.weight_name not in net.params:
            return f"layer {layer.name!r} is parametrised: its weight is no parameter of its own"
    return None if layers else "the network has no layer with weights"
