"""The regression problem of the CLIP paper, section 4.1."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lipbench.dataset import Dataset, Raw, Task

_SUPPORT = ((-4.0, -3.0), (-0.3, 0.3), (3.0, 4.0))
_DOMAIN = (-4.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class HalfMaxAbs(Dataset):
    """Noisy samples of f(x) = ½·max(|x| - 3, 0), known only on three short intervals.

    Training inputs are uniform on [-4, -3] ∪ [-0.3, 0.3] ∪ [3, 4]; between them a network is free
    to oscillate. The test set is f itself on a grid of [-4, 4]. Pairs for X_Lip are sampled from
    [-4, 4]. The paper prints neither the noise nor whether its 100 samples are drawn on the set
    or on [-4, 4] and then restricted; drawing on the set is this project's choice.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks (2021), section 4.1 and figure 2.
    """

    samples: int = 100
    """Training samples drawn."""
    noise: float = 0.05
    """Standard deviation of the Gaussian noise on the training targets."""

    task: ClassVar[Task] = "regression"
    box: ClassVar[tuple[float, float] | None] = _DOMAIN
    input_shape: ClassVar[tuple[int, ...]] = (1,)
    published_outputs: ClassVar[int] = 1
    published_size: ClassVar[int] = 100
    published_test_size: ClassVar[int] = 801
    pair_sampler: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}.")
        if not self.noise >= 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}.")

    @property
    def digest(self) -> str:
        """Return the recipe: the data follow from it and the fields."""
        return f"half_max_abs recipe 1, samples {self.samples}, noise {self.noise!r}"

    def read(self, folder: Path) -> Raw:
        """Return the samples, drawn from `split_seed`; `folder` is not used."""
        rng = np.random.default_rng([self.split_seed, 1])
        lengths = [high - low for low, high in _SUPPORT]
        place = rng.uniform(0, sum(lengths), self.samples)
        x = np.full(self.samples, np.nan)
        start = 0.0
        for (low, _), length in zip(_SUPPORT, lengths, strict=True):
            here = (place >= start) & (place <= start + length)
            x[here] = low + place[here] - start
            start += length
        y = target(x) + self.noise * rng.standard_normal(self.samples)
        grid = np.linspace(*_DOMAIN, 801)
        return Raw(
            train_inputs=x[:, None].astype(np.float32),
            train_targets=y[:, None].astype(np.float32),
            test_inputs=grid[:, None].astype(np.float32),
            test_targets=target(grid)[:, None].astype(np.float32),
        )

    def sample_pairs(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` points, uniform on [-4, 4]."""
        return rng.uniform(*_DOMAIN, (count, 1)).astype(np.float32)

    def grid(self) -> np.ndarray:
        """Return 801 points from -4 to 4."""
        return np.linspace(*_DOMAIN, 801, dtype=np.float32)[:, None]


def target(x: np.ndarray) -> np.ndarray:
    """Return ½·max(|x| - 3, 0)."""
    return np.maximum(np.abs(x) - 3, 0) / 2
