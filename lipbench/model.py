"""What an architecture must provide."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """An architecture; its fields are keys of `benchmarks.toml`. A subclass is final.

    Inputs are in pixel units. Normalisation, where there is any, is a layer of the network.
    """

    stackable: ClassVar[bool] = True
    """Whether several networks can be trained as one stack; it is used where it is faster."""

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], outputs: int, rng: torch.Generator) -> nn.Module:
        """Return an untrained network from `input_shape` to `outputs` numbers.

        All initial weights are drawn from `rng`, so that one seed gives every method the same
        start.

        Raises:
            ValueError: If the architecture cannot take inputs of this shape.
        """
