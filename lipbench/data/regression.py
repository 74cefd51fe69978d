"""One-dimensional regression problems: what such data sets share."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lipbench.dataset import Dataset, Raw, Task
from lipbench.ranges import at_least, require


@dataclass(frozen=True, kw_only=True)
class Regression(Dataset):
    """Points of an interval, a noisy function of them, and its mean on a fine grid.

    Pairs for X_Lip are sampled from the interval, `box`.
    """

    samples: int = 100
    """Training samples."""
    noise: float = 0.0
    """Size of the noise on the training targets."""

    task: ClassVar[Task] = "regression"
    box: ClassVar[tuple[float, float]]
    input_shape: ClassVar[tuple[int, ...]] = (1,)
    published_outputs: ClassVar[int] = 1
    published_size: ClassVar[int] = 100
    pair_sampler: ClassVar[bool] = True
    fewest: ClassVar[int] = 1
    """Samples that are needed at least."""
    recipe: ClassVar[str]
    """Name and version of how the data are made."""
    number: ClassVar[int]
    """Tells the draws of data sets with the same seed apart."""

    def __post_init__(self) -> None:
        require(
            at_least("samples", self.samples, self.fewest),
            at_least("noise", self.noise, 0),
        )

    @abstractmethod
    def points(self, rng: np.random.Generator) -> np.ndarray:
        """Return the inputs that are trained on."""

    @abstractmethod
    def mean(self, x: np.ndarray) -> np.ndarray:
        """Return the mean of the targets."""

    def noisy(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return targets as they are trained on: by default the mean plus Gaussian noise."""
        return self.mean(x) + self.noise * rng.standard_normal(len(x))

    @property
    def digest(self) -> str:
        """Return the recipe: the data follow from it and the fields."""
        return f"{self.recipe}, samples {self.samples}, noise {self.noise!r}"

    def read(self, folder: Path) -> Raw:
        """Return the samples, drawn from `split_seed`; `folder` is not used."""
        rng = np.random.default_rng([self.split_seed, self.number])
        x, grid = self.points(rng), self._grid()
        return Raw(
            train_inputs=_column(x),
            train_targets=_column(self.noisy(x, rng)),
            test_inputs=_column(grid),
            test_targets=_column(self.mean(grid)),
        )

    def sample_pairs(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` points, uniform on the interval."""
        return rng.uniform(*self.box, (count, 1)).astype(np.float32)

    def grid(self) -> np.ndarray:
        """Return the inputs of the test set: evenly spaced, from end to end."""
        return _column(self._grid())

    def _grid(self) -> np.ndarray:
        return np.linspace(*self.box, self.published_test_size)


@dataclass(frozen=True, kw_only=True)
class EvenlySpaced(Regression):
    """Training points that are evenly spaced from 0 to 10, both ends among them."""

    box: ClassVar[tuple[float, float]] = (0.0, 10.0)
    published_test_size: ClassVar[int] = 1001
    fewest: ClassVar[int] = 2

    def points(self, rng: np.random.Generator) -> np.ndarray:
        """Return evenly spaced points of [0, 10]."""
        return np.linspace(*self.box, self.samples)


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, None].astype(np.float32)
