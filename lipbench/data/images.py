"""Images in MNIST's file format (IDX), read by torchvision with every byte checked."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lipbench.dataset import DataMissing, Dataset, Raw


@dataclass(frozen=True, kw_only=True)
class MNISTLike(Dataset):
    """70,000 grey pictures of 28x28 pixels in ten classes, 10,000 of them for tests."""

    input_shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    published_outputs: ClassVar[int] = 10
    published_name: ClassVar[str]
    """Torchvision's name, and that of the folder that it keeps the files in."""
    digests: ClassVar[Mapping[str, str]]
    """SHA-256 of the four unpacked files, by their names."""

    @property
    @abstractmethod
    def loader(self) -> Callable[..., Any]:
        """Return torchvision's class, imported only when it is asked for."""

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the four unpacked files, joined."""
        return "-".join(self.digests.values())

    def missing(self, folder: Path) -> tuple[Path, ...]:
        """Return those of the four unpacked files that are not under `folder`."""
        return files(self.published_name, folder, self.digests)

    def fetch(self, folder: Path, progress: Callable[[str], None]) -> None:
        """Unpack or download the files.

        Raises:
            DataMissing: If they cannot be had.
        """
        fetch(self.loader, self.published_name, folder, self.digests, progress)

    def read(self, folder: Path) -> Raw:
        """Return the images and labels under `folder`.

        Raises:
            DataMissing: If a file is absent or damaged.
        """
        return read(self.loader, self.published_name, folder, self.digests)


def files(name: str, folder: Path, digests: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the files of the data set that are not under `folder` in torchvision's layout."""
    paths = [folder / name / "raw" / file for file in digests]
    return tuple(path for path in paths if not path.exists())


def fetch(
    loader: Callable[..., Any],
    name: str,
    folder: Path,
    digests: Mapping[str, str],
    progress: Callable[[str], None],
) -> None:
    """Unpack or download what is missing, with torchvision's own loader and progress bar.

    Raises:
        DataMissing: If it cannot be had, or what is there is damaged.
    """
    if not files(name, folder, digests):
        _refuse_damaged(name, folder, digests)
        progress(f"{name} is in {folder / name / 'raw'}")
        return
    progress(f"fetching {name} into {folder / name / 'raw'}")
    try:
        loader(root=str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataMissing(_advice(name, folder, f"cannot be downloaded ({error})")) from error
    _refuse_damaged(name, folder, digests)


def read(loader: Callable[..., Any], name: str, folder: Path, digests: Mapping[str, str]) -> Raw:
    """Return the data set, its images as (samples, 1, height, width) in [0, 1].

    Raises:
        DataMissing: If a file is absent or its content is not the published one.
    """
    absent = files(name, folder, digests)
    if absent:
        raise DataMissing(_advice(name, folder, f"is not there: {absent[0]} is missing"))
    _refuse_damaged(name, folder, digests)
    train, test = (
        loader(root=str(folder), train=is_train, download=False) for is_train in (True, False)
    )
    return Raw(
        train_inputs=_pixels(train.data),
        train_targets=train.targets.numpy().astype(np.int64),
        test_inputs=_pixels(test.data),
        test_targets=test.targets.numpy().astype(np.int64),
    )


def _refuse_damaged(name: str, folder: Path, digests: Mapping[str, str]) -> None:
    """Check the content of all files.

    Raises:
        DataMissing: If it is not the published one.
    """
    for file, expected in digests.items():
        path = folder / name / "raw" / file
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != expected:
            raise DataMissing(
                f"{path} has SHA-256 {digest}, expected {expected}: remove it and run "
                "`lipbench data fetch` again."
            )


def _pixels(images: Any) -> np.ndarray:
    return (images.numpy().astype(np.float32) / np.float32(255))[:, None]


def _advice(name: str, folder: Path, problem: str) -> str:
    return (
        f"{name} {problem}. Run `lipbench data fetch` where there is a network, or copy its four "
        f"files (gz or unpacked) to {folder / name / 'raw'}, or set LIPBENCH_DATA to the folder "
        f"that holds {name}/raw."
    )
