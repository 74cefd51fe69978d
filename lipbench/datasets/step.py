"""A step function: regression on which training with Lipschitz bounds was first shown."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lipbench.data.regression import EvenlySpaced

# In steps of the authors' 100 points: those of numbers 10 to 14 and 70 to 79 are 1.
_JUMPS = np.array([9.5, 14.5, 69.5, 79.5]) * (10 / 99)


@dataclass(frozen=True, kw_only=True)
class Step(EvenlySpaced):
    """A function that is 0 or 1, at evenly spaced points of [0, 10], without noise.

    It is 1 at 5 and at 10 of the authors' 100 points, close to [1, 1.4] and [7.1, 8], so that a
    good fit is steep. Between two points that differ it jumps in the middle, so that it is one
    function for every number of samples; that, the grid of the test set, the noise that can be
    had, and the pairs for X_Lip, sampled from [0, 10], are this project's choice.

    Source:
        Pauli, Koch, Berberich, Kohler, Allgöwer, Training Robust Neural Networks Using Lipschitz
        Bounds (2022), https://arxiv.org/abs/2005.02929, and the authors' public code for it.
    """

    noise: float = 0.0
    """Standard deviation of Gaussian noise on the training targets; the authors have none."""

    recipe: ClassVar[str] = "step recipe 1"
    number: ClassVar[int] = 3

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Return 1 where x lies behind an odd number of jumps, else 0."""
        return np.searchsorted(_JUMPS, x) % 2.0
