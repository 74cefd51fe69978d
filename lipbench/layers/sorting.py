"""GroupSort and MaxMin: activations that sort, and keep all that passes through them.

Source:
    Anil, Lucas, Grosse, Sorting Out Lipschitz Function Approximation (ICML 2019),
    https://arxiv.org/abs/1811.05381, section 4, where groups are sorted upwards.
"""

from jaxtyping import Float
from torch import Tensor, nn


def sort_groups(
    inputs: Float[Tensor, "batch channels *rest"], group: int
) -> Float[Tensor, "batch channels *rest"]:
    """Return the inputs with each `group` consecutive channels sorted, the largest first.

    The map is 1-Lipschitz in norms 1, 2 and infinity: it is continuous, and on each of the
    finitely many convex cones in which the order of all groups is fixed it is a permutation, an
    isometry. A segment from x to y passes through the cones in pieces, whose lengths add up.

    Raises:
        ValueError: If the number of channels is no multiple of the group.
    """
    if inputs.shape[1] % group:
        raise ValueError(f"{inputs.shape[1]} channels are no groups of {group}.")
    grouped = inputs.unflatten(1, (-1, group))
    return grouped.sort(dim=2, descending=True).values.flatten(1, 2)


class GroupSort(nn.Module):
    """Sort groups of consecutive channels (axis 1), each from the largest to the smallest."""

    def __init__(self, group: int) -> None:
        """Keep the size of a group.

        Raises:
            ValueError: If it is less than 1.
        """
        super().__init__()
        if group < 1:
            raise ValueError(f"GroupSort needs groups of at least 1 channel, got {group}.")
        self.group = group

    def forward(
        self, inputs: Float[Tensor, "batch channels *rest"]
    ) -> Float[Tensor, "batch channels *rest"]:
        """Return the inputs with sorted groups."""
        return sort_groups(inputs, self.group)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return str(self.group)


class MaxMin(nn.Module):
    """Replace channels (axis 1) 0 and 1, 2 and 3, … by the larger and then the smaller of both.

    It is `GroupSort(2)`.
    """

    def forward(
        self, inputs: Float[Tensor, "batch channels *rest"]
    ) -> Float[Tensor, "batch channels *rest"]:
        """Return the inputs with sorted pairs."""
        return sort_groups(inputs, 2)
