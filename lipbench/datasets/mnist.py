"""MNIST."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lipbench.data import images as torchvision_images
from lipbench.dataset import Dataset, Raw

_DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True, kw_only=True)
class MNIST(Dataset):
    """70,000 handwritten digits of 28x28 pixels, 10,000 of them for tests.

    Source:
        LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits (1998).
    """

    input_shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    published_outputs: ClassVar[int] = 10

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the four unpacked files, joined."""
        return "-".join(_DIGESTS.values())

    def missing(self, folder: Path) -> tuple[Path, ...]:
        """Return those of the four unpacked files that are not under `folder`."""
        return torchvision_images.files("MNIST", folder, _DIGESTS)

    def fetch(self, folder: Path, progress: Callable[[str], None]) -> None:
        """Unpack or download the files.

        Raises:
            DataMissing: If they cannot be had.
        """
        from torchvision.datasets import MNIST as Loader

        torchvision_images.fetch(Loader, "MNIST", folder, _DIGESTS, progress)

    def read(self, folder: Path) -> Raw:
        """Return the images and labels under `folder`.

        Raises:
            DataMissing: If a file is absent or damaged.
        """
        from torchvision.datasets import MNIST as Loader

        return torchvision_images.read(Loader, "MNIST", folder, _DIGESTS)
