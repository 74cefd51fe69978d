"""A function of tensors as the list of operations it came to, without the Python around them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lipbench.trees import Tree, leaves, tree_map

Function = Callable[..., Tree]


class Traced:
    """What a function did: `vmap` and `grad` are gone, what they made of it is left.

    Each operation inside these transformations costs a processor several times the Python of a
    plain one, which for a small network is more than the arithmetic.
    """

    def __init__(self, function: Function, arguments: tuple[Tree, ...]) -> None:
        """Write down one call.

        Raises:
            RuntimeError: If the function does what cannot be written down, such as to read a value.
        """

        def flat(values: list[Tensor]) -> Tree:
            given = iter(values)
            return function(*tree_map(lambda _: next(given), arguments))

        # The forward and not the module, which looks for hooks at every call.
        self._run: Callable[[list[Tensor]], Any] = make_fx(flat)(leaves(arguments)).forward

    def __call__(self, *arguments: Tree) -> Tree:
        """Return the outputs for other numbers."""
        return self._run(leaves(arguments))
