"""A noisy sine: regression on which training with Lipschitz bounds was first shown."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lipbench.data.regression import EvenlySpaced


@dataclass(frozen=True, kw_only=True)
class Sine(EvenlySpaced):
    """Samples of sin(x) plus uniform noise, at evenly spaced points of [0, 10].

    The noise is uniform on [0, noise), so that its mean is not 0: the test set is
    sin(x) + noise/2 on a grid of [0, 10]. Points, noise and test function are those of the
    authors' code; its draw is that of another generator, the grid of the test set and the pairs
    for X_Lip, sampled from [0, 10], are this project's choice.

    Source:
        Pauli, Koch, Berberich, Kohler, Allgöwer, Training Robust Neural Networks Using Lipschitz
        Bounds (2022), https://arxiv.org/abs/2005.02929, and the authors' public code for it.
    """

    noise: float = 1.0
    """Width of the uniform noise on the training targets."""

    recipe: ClassVar[str] = "sine recipe 1"
    number: ClassVar[int] = 2

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Return sin(x) and the mean of the noise."""
        return np.sin(x) + self.noise / 2

    def noisy(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return sin(x) plus noise from [0, noise)."""
        return np.sin(x) + self.noise * rng.uniform(size=len(x))
