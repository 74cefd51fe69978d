"""Circular convolutions by the Fourier transform, with kernels as large as the image.

In the Fourier basis such a convolution is one matrix for each frequency, its symbol. Functions of
these matrices give another convolution of this kind; its norm is the largest of theirs.

With a stride s the image is first cut into its s² phases, images that are s times smaller; they
are the channels of a convolution with stride 1. That only renames numbers.
"""

from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn


class Circular(nn.Module):
    """y[o, i] = b[o] + Σ W[o, c, p]·x[c, i·s + p], where positions are modulo the image's size.

    It is `nn.Conv2d` behind `nn.CircularPad2d`, computed by Fourier transforms.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        channels: tuple[int, int],
        size: tuple[int, int],
        taps: tuple[int, int],
        *,
        stride: int = 1,
        bias: bool = True,
    ) -> None:
        """Keep the sizes; the numbers are all 0.

        Args:
            channels: Channels of the outputs and of the inputs, as in the weight.
            size: Height and width of the image, multiples of the stride.
            taps: Height and width of the kernel that `symbol` reads, no more than those.
            stride: The stride along both axes.
            bias: Whether there is a bias.

        Raises:
            ValueError: If the sizes do not fit each other.
        """
        super().__init__()
        fits = all(n % stride == 0 and 1 <= k <= n for n, k in zip(size, taps, strict=True))
        if not fits:
            raise ValueError(
                f"Circular needs 1 <= taps <= size, and a stride that divides size, got {taps}, "
                f"{size} and {stride}."
            )
        self.size, self.taps, self.stride = size, taps, stride
        self.weight = nn.Parameter(torch.zeros(*channels, *size))
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels[0])) if bias else None)

    def forward(self, inputs: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out i j"]:
        """Return the outputs, s times smaller than the image."""
        images = torch.fft.rfft2(self._phases(inputs.to(self.weight.dtype)))
        products = torch.einsum("fgoc,bcfg->bofg", self._symbol(self.weight), images)
        size = [n // self.stride for n in self.size]
        outputs = torch.fft.irfft2(products, s=size)
        return outputs if self.bias is None else outputs + self.bias.view(-1, 1, 1)

    def adjoint(self, outputs: Float[Tensor, "batch out i j"]) -> Float[Tensor, "batch in h w"]:
        """Return Wᵀy."""
        images = torch.fft.rfft2(outputs.to(self.weight.dtype))
        products = torch.einsum("fgoc,bofg->bcfg", self._symbol(self.weight).conj(), images)
        size = [n // self.stride for n in self.size]
        return self._whole(torch.fft.irfft2(products, s=size))

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        out, channels = self.weight.shape[:2]
        return f"{channels}, {out}, size={self.size}, taps={self.taps}, stride={self.stride}"

    def middle(self) -> Float[Tensor, "out in kh kw"]:
        """Return the part of the weight that `remade` reads, as a view."""
        return self.weight[..., : self.taps[0], : self.taps[1]]

    def remade(
        self,
        weight: Float[Tensor, "out in h w"],
        change: Callable[[Complex[Tensor, "f g out in"]], Complex[Tensor, "f g out in"]],
    ) -> Float[Tensor, "out in h w"]:
        """Return the weight of a convolution whose symbol is a function of that of a small kernel.

        This is pure tensor code that runs under `torch.func.vmap`.

        Args:
            weight: The small kernel in the first `taps` of its entries; its middle reads the
                output's own position. The other entries do not count.
            change: The function, of matrices at all frequencies f, g that a real kernel needs. It
                must map conjugates to conjugates.
        """
        height, width = self.taps
        small = weight[..., :height, :width]
        around = [0, self.size[1] - width, 0, self.size[0] - height]
        kernel = torch.nn.functional.pad(small, around)
        kernel = kernel.roll((-(height // 2), -(width // 2)), dims=(-2, -1))
        changed = change(self._symbol(kernel)).permute(2, 3, 0, 1).conj()
        size = [n // self.stride for n in self.size]
        return self._whole(torch.fft.irfft2(changed, s=size))

    def _symbol(self, weight: Tensor) -> Complex[Tensor, "f g out phases"]:
        # What a kernel does to e^(iω·p) is to multiply it by the conjugate of its own transform.
        return torch.fft.rfft2(self._phases(weight)).conj().permute(2, 3, 0, 1)

    def _phases(self, images: Tensor) -> Float[Tensor, "rows phases i j"]:
        rows, channels, height, width = images.shape
        s = self.stride
        if s == 1:
            return images
        split = images.reshape(rows, channels, height // s, s, width // s, s)
        merged = split.permute(0, 1, 3, 5, 2, 4)
        return merged.reshape(rows, channels * s * s, height // s, width // s)

    def _whole(self, phases: Tensor) -> Float[Tensor, "rows channels h w"]:
        s = self.stride
        if s == 1:
            return phases
        rows, channels, height, width = phases.shape
        split = phases.reshape(rows, channels // (s * s), s, s, height, width)
        merged = split.permute(0, 1, 4, 2, 5, 3)
        return merged.reshape(rows, channels // (s * s), height * s, width * s)
