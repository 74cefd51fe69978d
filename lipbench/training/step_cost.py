"""The cost of a step of each training method, measured against plain training."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lipbench.data.splits import Batch, Data, split
from lipbench.dataset import Dataset, Raw
from lipbench.method import Method, Scalars, State
from lipbench.model import Model
from lipbench.networks.net import Net
from lipbench.refused import Refused
from lipbench.training.ensemble import TrainingRefused
from lipbench.training.epoch import train_epoch
from lipbench.training.optimiser import Optimizer
from lipbench.training.settings import MethodEntry, TrainingSettings
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial

REFERENCE = "784-64-64-10 ReLU, batch 128, one network at a time"
"""What is trained to find the cost of a step."""

_BATCH, _STEPS = 128, 24


@dataclass(frozen=True, kw_only=True)
class Price:
    """The cost of a step in steps of plain training, or why there is none."""

    ratio: float | None = None
    """Median over the repeats."""
    lowest: float | None = None
    highest: float | None = None
    reason: str | None = None
    """Why the method with its default fields does not train the reference network."""


def price(method: Callable[[], Method], repeats: int = 5, device: str = "cpu") -> Price:
    """Measure the cost of a step of a method with its default fields.

    Both train `REFERENCE` on noise, in turn, for epochs of 24 steps. What begins an epoch counts,
    such as drawing pairs; what ends one, such as a semidefinite program, does not. The first epoch
    of each is not timed.

    Args:
        method: Makes the method.
        repeats: How many epochs of each are timed.
        device: Where to train.

    Returns:
        The cost, or why there is none.
    """
    try:
        data = split(_NOISE, _NOISE.read(Path()), device)
        epoch, plain = _epochs(method(), data), _epochs(_Plain(), data)
        next(epoch), next(plain)
        ratios = [next(epoch) / next(plain) for _ in range(repeats)]
    except (TrainingRefused, Refused, ValueError) as reason:
        return Price(reason=str(reason))
    return Price(ratio=statistics.median(ratios), lowest=min(ratios), highest=max(ratios))


def _epochs(method: Method, data: Data) -> Iterator[float]:
    """Yield the seconds of one epoch after another."""
    training = TrainingSettings(
        epochs=1_000_000, batch_size=_BATCH, warmup=0, optimizer=Optimizer(lr=0.01)
    )
    entry = MethodEntry(name="it", method=method, training=training)
    trainer = Trainer([Trial(entry=entry, seed=0)], _Reference(), data)
    state = trainer.begin()
    wait = _waiting(trainer.ensemble.device)
    while True:
        began = time.perf_counter()
        train_epoch(trainer.ensemble, state, trainer.step)
        state.epoch += 1
        wait()
        yield time.perf_counter() - began


def _waiting(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


@dataclass(frozen=True, kw_only=True)
class _Plain(Method):
    """The yardstick: the mean loss and nothing else."""

    stackable: ClassVar[bool] = True

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}


@dataclass(frozen=True, kw_only=True)
class _Reference(Model):
    def build(self, input_shape: tuple[int, ...], outputs: int, rng: torch.Generator) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for inside, outside in ((784, 64), (64, 64), (64, outputs)):
            layer = skip_init(nn.Linear, inside, outside)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(inside**-0.5), inside**-0.5, generator=rng)
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True, kw_only=True)
class _Noise(Dataset):
    input_shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    published_outputs: ClassVar[int] = 10

    @property
    def digest(self) -> str:
        return "noise"

    def read(self, folder: Path) -> Raw:
        rng = np.random.default_rng(0)
        count = _BATCH * (_STEPS + 4)
        inputs = rng.random((count, *self.input_shape), dtype=np.float32)
        targets = np.arange(count, dtype=np.int64) % self.published_outputs
        few = slice(0, _BATCH)
        return Raw(
            train_inputs=inputs,
            train_targets=targets,
            test_inputs=inputs[few],
            test_targets=targets[few],
        )


_NOISE = _Noise(train_size=_BATCH * _STEPS, pair_size=4 * _BATCH)
