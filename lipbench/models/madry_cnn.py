"""The convolutional network of Madry et al. for MNIST."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import skip_init

from lipbench.model import Model
from lipbench.ranges import positive, require


@dataclass(frozen=True, kw_only=True)
class MadryCNN(Model):
    """Two 5x5 convolutions (32 and 64 channels) with ReLU and 2x2 max-pooling, then 1024 units.

    Weights start from a normal distribution of standard deviation `init_std` cut off at two of
    them, biases at `init_bias`; the defaults are those of the authors' code.

    Source:
        Madry, Makelov, Schmidt, Tsipras, Vladu, Towards Deep Learning Models Resistant to
        Adversarial Attacks (2018), section 4, and their public MNIST model.
    """

    init_std: float = 0.1
    init_bias: float = 0.1

    def __post_init__(self) -> None:
        require(positive("init_std", self.init_std))

    def build(self, input_shape: tuple[int, ...], outputs: int, rng: torch.Generator) -> nn.Module:
        """Return the network.

        Raises:
            ValueError: If inputs are not images of at least 4x4 pixels.
        """
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise ValueError(
                "madry_cnn needs inputs of shape (channels, height, width) with at least 4x4 "
                f"pixels, got {input_shape}."
            )
        channels, height, width = input_shape
        # torch's own initialisation would draw from the global generator.
        layers = (
            skip_init(nn.Conv2d, channels, 32, 5, padding=2),
            skip_init(nn.Conv2d, 32, 64, 5, padding=2),
            skip_init(nn.Linear, 64 * (height // 4) * (width // 4), 1024),
            skip_init(nn.Linear, 1024, outputs),
        )
        for layer in layers:
            weight, bias = layer.parameters()
            nn.init.trunc_normal_(
                weight,
                std=self.init_std,
                a=-2 * self.init_std,
                b=2 * self.init_std,
                generator=rng,
            )
            nn.init.constant_(bias, self.init_bias)
        first, second, third, last = layers
        return nn.Sequential(
            *(first, nn.ReLU(), nn.MaxPool2d(2)),
            *(second, nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), third, nn.ReLU(), last),
        )
