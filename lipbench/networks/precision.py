"""Precision of products: full, tf32 or bf16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["full", "tf32", "bf16"]
"""Products in the type of the data; on GPUs that can, forward ones with 10 bits of mantissa; or all
in bfloat16."""


@contextmanager
def products(precision: Precision = "full") -> Iterator[None]:
    """Let GPUs use TF32 for products if that is asked for, and otherwise not.

    Left to itself, torch uses it in convolutions. Networks in bfloat16 say so themselves.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
