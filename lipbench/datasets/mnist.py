"""MNIST."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lipbench.data.images import MNISTLike

_DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True, kw_only=True)
class MNIST(MNISTLike):
    """70,000 handwritten digits of 28x28 pixels, 10,000 of them for tests.

    Source:
        LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits (1998).
    """

    published_name: ClassVar[str] = "MNIST"
    digests: ClassVar[Mapping[str, str]] = _DIGESTS

    @property
    def loader(self) -> Callable[..., Any]:
        """Return torchvision's class."""
        from torchvision.datasets import MNIST as Loader

        return Loader
