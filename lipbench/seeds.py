"""Random streams: one per seed and role, so that what is shared between methods stays shared."""

import zlib
from typing import Literal

import numpy as np
import torch

Role = Literal["init", "order", "method", "noise", "attack", "bound", "global"]


def stream(seed: int, role: Role, *labels: str) -> torch.Generator:
    """Return a fresh CPU generator for one role of one seed.

    Only the role "method" is given the method's name among `labels`. Initial weights, order of
    the batches, noise and attacks are therefore the same for every method of a seed, and a method
    whose strength is 0 follows the standard one bit for bit.
    """
    words = [seed, *(zlib.crc32(label.encode()) for label in (role, *labels))]
    state = np.random.SeedSequence(words).generate_state(1, dtype=np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
