"""Kernel matrices: a convolution as the dense layer of its flattened kernel."""

from lipbench.networks.steps import Convolution, Dense, Linear


def as_kernel_matrix(layer: Linear) -> Linear:
    """Return the dense layer whose matrix is a convolution's kernel, flattened per output channel.

    Its norm is no bound of the convolution's: with k taps and stride 1 that may be √k times as
    large. Other layers are returned as they are.
    """
    if not isinstance(layer, Convolution):
        return layer
    matrix = layer.weight.flatten(1)
    rows, columns = matrix.shape
    return Dense(
        name=layer.name,
        weight=matrix,
        bias=None,
        weight_name=layer.weight_name,
        bias_name=None,
        input_shapes=((columns,),),
        output_shape=(rows,),
    )
