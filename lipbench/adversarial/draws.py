"""Per-sample random numbers, which do not depend on the other samples of a batch."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.seeds import stream

Kind = Literal["normal", "uniform"]
_KEPT = 2**25
"""Numbers that are kept for the next batch of the same network; more are drawn again."""


class Draws:
    """Random tensors for the samples of a data set.

    What a sample gets depends on the generator, the number of the draw and the sample's index in
    the data set alone: not on the other samples of its batch, nor on which of them are left. So
    an attack on many networks at once starts where the attack on each of them would.
    """

    def __init__(self, rng: torch.Generator, samples: int) -> None:
        """Take one number from `rng`, which all draws follow from."""
        self.samples = samples
        self._seed = int(torch.randint(2**62, (), generator=rng))
        self._kept: dict[tuple[Kind, int, tuple[int, ...]], Tensor] = {}

    def take(
        self, kind: Kind, number: int, shape: tuple[int, ...], index: Int[Tensor, " some"]
    ) -> Float[Tensor, "some *shape"]:
        """Return the draw with this number for the samples with these indices, on the CPU.

        Standard normal, or uniform on [0, 1).
        """
        key = (kind, number, shape)
        drawn = self._kept.get(key)
        if drawn is None:
            rng = stream(self._seed, "attack", kind, str(number))
            draw = torch.randn if kind == "normal" else torch.rand
            drawn = draw(self.samples, *shape, generator=rng)
            if sum(kept.numel() for kept in self._kept.values()) + drawn.numel() <= _KEPT:
                self._kept[key] = drawn
        return drawn[index]
