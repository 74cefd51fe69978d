"""Half the largest absolute value: the regression problem of the CLIP paper, section 4.1."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lipbench.data.regression import Regression

_SUPPORT = ((-4.0, -3.0), (-0.3, 0.3), (3.0, 4.0))


@dataclass(frozen=True, kw_only=True)
class HalfMaxAbs(Regression):
    """Noisy samples of f(x) = ½·max(|x| - 3, 0), known only on three short intervals.

    Training inputs are uniform on [-4, -3] ∪ [-0.3, 0.3] ∪ [3, 4]; between them a network is free
    to oscillate. The test set is f itself on a grid of [-4, 4]. Pairs for X_Lip are sampled from
    [-4, 4]. The paper prints neither the noise nor whether its 100 samples are drawn on the set
    or on [-4, 4] and then restricted; drawing on the set is this project's choice.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks (2021), section 4.1 and figure 2.
    """

    noise: float = 0.05
    """Standard deviation of the Gaussian noise on the training targets."""

    box: ClassVar[tuple[float, float]] = (-4.0, 4.0)
    published_test_size: ClassVar[int] = 801
    recipe: ClassVar[str] = "half_max_abs recipe 1"
    number: ClassVar[int] = 1

    def points(self, rng: np.random.Generator) -> np.ndarray:
        """Return points that are uniform on the three intervals."""
        lengths = [high - low for low, high in _SUPPORT]
        place = rng.uniform(0, sum(lengths), self.samples)
        x = np.full(self.samples, np.nan)
        start = 0.0
        for (low, _), length in zip(_SUPPORT, lengths, strict=True):
            here = (place >= start) & (place <= start + length)
            x[here] = low + place[here] - start
            start += length
        return x

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Return ½·max(|x| - 3, 0)."""
        return np.maximum(np.abs(x) - 3, 0) / 2
