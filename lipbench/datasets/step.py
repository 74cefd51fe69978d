"""The step function that training with Lipschitz bounds was first shown on."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lipbench.dataset import Dataset, Raw, Task

_DOMAIN = (0.0, 10.0)
# In steps of the authors' 100 points: those of numbers 10 to 14 and 70 to 79 are 1.
_JUMPS = np.array([9.5, 14.5, 69.5, 79.5]) * (10 / 99)


@dataclass(frozen=True, kw_only=True)
class Step(Dataset):
    """A function that is 0 or 1, at evenly spaced points of [0, 10], without noise.

    It is 1 at 5 and at 10 of the authors' 100 points, close to [1, 1.4] and [7.1, 8], so that a
    good fit is steep. Between two points that differ it jumps in the middle, so that it is one
    function for every number of samples; that, the grid of the test set, the noise that can be
    had, and the pairs for X_Lip, sampled from [0, 10], are this project's choice.

    Source:
        Pauli, Koch, Berberich, Kohler, Allgöwer, Training Robust Neural Networks Using Lipschitz
        Bounds (2022), https://arxiv.org/abs/2005.02929, and the authors' public code for it.
    """

    samples: int = 100
    """Training samples."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the training targets; the authors have none."""

    task: ClassVar[Task] = "regression"
    box: ClassVar[tuple[float, float] | None] = _DOMAIN
    input_shape: ClassVar[tuple[int, ...]] = (1,)
    published_outputs: ClassVar[int] = 1
    published_size: ClassVar[int] = 100
    published_test_size: ClassVar[int] = 1001
    pair_sampler: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, got {self.samples}.")
        if not self.noise >= 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}.")

    @property
    def digest(self) -> str:
        """Return the recipe: the data follow from it and the fields."""
        return f"step recipe 1, samples {self.samples}, noise {self.noise!r}"

    def read(self, folder: Path) -> Raw:
        """Return the samples, their noise drawn from `split_seed`; `folder` is not used."""
        rng = np.random.default_rng([self.split_seed, 3])
        x = np.linspace(*_DOMAIN, self.samples)
        y = target(x) + self.noise * rng.standard_normal(self.samples)
        grid = np.linspace(*_DOMAIN, 1001)
        return Raw(
            train_inputs=x[:, None].astype(np.float32),
            train_targets=y[:, None].astype(np.float32),
            test_inputs=grid[:, None].astype(np.float32),
            test_targets=target(grid)[:, None].astype(np.float32),
        )

    def sample_pairs(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` points, uniform on [0, 10]."""
        return rng.uniform(*_DOMAIN, (count, 1)).astype(np.float32)

    def grid(self) -> np.ndarray:
        """Return 1001 points from 0 to 10."""
        return np.linspace(*_DOMAIN, 1001, dtype=np.float32)[:, None]


def target(x: np.ndarray) -> np.ndarray:
    """Return 1 where x lies behind an odd number of jumps, else 0."""
    return np.searchsorted(_JUMPS, x) % 2.0
