"""The noisy sine that training with Lipschitz bounds was first shown on."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lipbench.dataset import Dataset, Raw, Task

_DOMAIN = (0.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Sine(Dataset):
    """Samples of sin(x) plus uniform noise, at evenly spaced points of [0, 10].

    The noise is uniform on [0, noise), so that its mean is not 0: the test set is
    sin(x) + noise/2 on a grid of [0, 10]. Points, noise and test function are those of the
    authors' code; its draw is that of another generator, the grid of the test set and the pairs
    for X_Lip, sampled from [0, 10], are this project's choice.

    Source:
        Pauli, Koch, Berberich, Kohler, Allgöwer, Training Robust Neural Networks Using Lipschitz
        Bounds (2022), https://arxiv.org/abs/2005.02929, and the authors' public code for it.
    """

    samples: int = 100
    """Training samples."""
    noise: float = 1.0
    """Width of the uniform noise on the training targets."""

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
        return f"sine recipe 1, samples {self.samples}, noise {self.noise!r}"

    def read(self, folder: Path) -> Raw:
        """Return the samples, their noise drawn from `split_seed`; `folder` is not used."""
        rng = np.random.default_rng([self.split_seed, 2])
        x = np.linspace(*_DOMAIN, self.samples)
        y = np.sin(x) + self.noise * rng.uniform(size=self.samples)
        grid = np.linspace(*_DOMAIN, 1001)
        return Raw(
            train_inputs=x[:, None].astype(np.float32),
            train_targets=y[:, None].astype(np.float32),
            test_inputs=grid[:, None].astype(np.float32),
            test_targets=(np.sin(grid) + self.noise / 2)[:, None].astype(np.float32),
        )

    def sample_pairs(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` points, uniform on [0, 10]."""
        return rng.uniform(*_DOMAIN, (count, 1)).astype(np.float32)

    def grid(self) -> np.ndarray:
        """Return 1001 points from 0 to 10."""
        return np.linspace(*_DOMAIN, 1001, dtype=np.float32)[:, None]
