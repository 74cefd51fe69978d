"""Fashion-MNIST."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lipbench.data import images as torchvision_images
from lipbench.dataset import Dataset, Raw

_DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(Dataset):
    """70,000 pictures of clothes of 28x28 pixels, 10,000 of them for tests.

    Source:
        Xiao, Rasul and Vollgraf, Fashion-MNIST: a Novel Image Dataset (2017).
    """

    input_shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    published_outputs: ClassVar[int] = 10

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the four unpacked files, joined."""
        return "-".join(_DIGESTS.values())

    def missing(self, folder: Path) -> tuple[Path, ...]:
        """Return those of the four unpacked files that are not under `folder`."""
        return torchvision_images.files("FashionMNIST", folder, _DIGESTS)

    def fetch(self, folder: Path, progress: Callable[[str], None]) -> None:
        """Unpack or download the files.

        Raises:
            DataMissing: If they cannot be had.
        """
        from torchvision.datasets import FashionMNIST as Loader

        torchvision_images.fetch(Loader, "FashionMNIST", folder, _DIGESTS, progress)

    def read(self, folder: Path) -> Raw:
        """Return the images and labels under `folder`.

        Raises:
            DataMissing: If a file is absent or damaged.
        """
        from torchvision.datasets import FashionMNIST as Loader

        return torchvision_images.read(Loader, "FashionMNIST", folder, _DIGESTS)
