"""What a data set must provide. Free of torch, so that `lipbench data` starts fast."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

Task = Literal["classification", "regression"]


class DataMissing(Exception):
    """A file of a data set is absent or damaged; the message names it and the way out."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A data set as it was published, before it is split.

    Inputs are float32 in pixel units [0, 1] with the sample axis first; images are
    (samples, channels, height, width). Targets are int64 labels, or float32 (samples, outputs).
    """

    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Inputs and targets, and how they are split. The fields are keys of `benchmarks.toml`.

    The split is part of the data set: it depends on `split_seed` alone, so every method and
    every seed of a benchmark sees the same training, pair, validation and test samples. A
    subclass is final.
    """

    train_size: int | None = None
    """Training samples; None takes all that the pair and validation sets leave."""
    pair_size: int = 0
    """Samples set aside for X_Lip, the pairs that estimate the Lipschitz constant."""
    validation_size: int = 0
    """Samples set aside for choosing the checkpoint."""
    classes: tuple[int, ...] = ()
    """Labels to keep, renumbered 0, 1, ... in this order; empty keeps all."""
    split_seed: int = 0

    task: ClassVar[Task] = "classification"
    """Fixes the loss (cross entropy or squared error) and the measure (accuracy or mse)."""
    box: ClassVar[tuple[float, float] | None] = (0.0, 1.0)
    """The valid inputs; attacks and noise are clipped to it."""
    input_shape: ClassVar[tuple[int, ...]]
    """Shape of one input."""
    published_outputs: ClassVar[int]
    """Classes, or target dimensions, of the published set."""
    published_size: ClassVar[int] = 60_000
    """Published training samples, which all splits share; as the next, for estimates of time."""
    published_test_size: ClassVar[int] = 10_000
    pair_sampler: ClassVar[bool] = False
    """Whether X_Lip is a sampler on the input space (`sample_pairs`) and not a set of samples."""

    @property
    def outputs(self) -> int:
        """Return the number of classes kept, or of target dimensions."""
        return len(self.classes) or self.published_outputs

    @property
    @abstractmethod
    def digest(self) -> str:
        """Return what identifies the bytes: `read` refuses files with any other content."""

    @abstractmethod
    def read(self, folder: Path) -> Raw:
        """Return the published data, found under `folder`; nothing is downloaded.

        Raises:
            DataMissing: If a file is absent or its content is not `digest`.
        """

    def missing(self, folder: Path) -> tuple[Path, ...]:
        """Return the files that `read` would need and that are not under `folder`."""
        return ()

    def fetch(self, folder: Path, progress: Callable[[str], None]) -> None:  # noqa: B027
        """Download what is missing into `folder`, telling `progress` what happens.

        Raises:
            DataMissing: If a file cannot be had; the message says where it was looked for.
        """

    def sample_pairs(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` base points of fresh pairs, if the data set is a `pair_sampler`.

        Raises:
            TypeError: If it is not.
        """
        raise TypeError(f"{type(self).__name__} has no pair sampler: use its pair set.")

    def grid(self) -> np.ndarray | None:
        """Return inputs at which a trained function is worth drawing, or None."""
        return None
