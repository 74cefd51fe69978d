"""What an attack must provide, and what the core makes of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.norm import Norm
from lipbench.threat import Threat

Classifier = Callable[[Float[Tensor, "batch *shape"]], Float[Tensor, "batch classes"]]


class AttackInvalid(Exception):
    """An attack broke its contract; the message says how. Nothing it found can be counted."""


class NonFiniteLogits(Exception):
    """The network answers clean inputs with infinities or NaN: there is nothing to attack."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A search for inputs that a classifier gets wrong.

    The fields are the attack's own settings: the keys that `benchmarks.toml` may set. An attack
    only proposes. The core projects every proposal onto the threat model, judges it with its own
    forward pass, and counts the queries, so no attack can overstate its success. A subclass is
    final; to vary one, wrap it.
    """

    norms: ClassVar[frozenset[Norm]]
    """The norms of the threat models that the attack can work on."""
    samplewise: ClassVar[bool] = False
    """Promises that no sample feels the others: that it honours an epsilon for each, says with
    `lipbench.on_rows` which it asks about, and draws with `lipbench.numbers`. Then samples of
    several epsilons, and of several networks, share a batch."""

    @property
    def cost(self) -> float:
        """Return roughly how often a sample that survives is evaluated; for estimates only."""
        return 100.0

    @abstractmethod
    def propose(
        self,
        model: Classifier,
        inputs: Float[Tensor, "batch *shape"],
        labels: Int[Tensor, " batch"],
        threat: Threat,
        rng: torch.Generator,
    ) -> Float[Tensor, "batch *shape"]:
        """Return one candidate per input; those outside `threat` will be projected.

        `model` maps inputs in pixel units to logits, in evaluation mode, and counts its queries.
        All randomness comes from `rng`, which lives on the CPU, so that a result does not depend
        on the device.
        """


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """What one attack did to one batch, as judged by the core, one entry per sample.

    A sample that is misclassified as it stands is a success at distance 0.
    """

    inputs: Float[Tensor, "batch *shape"]
    """The adversarial inputs; the clean ones where the attack failed."""
    success: Bool[Tensor, " batch"]
    """Whether `inputs` is misclassified; accuracy under attack is the share without success."""
    distance: Float[Tensor, " batch"]
    """‖inputs - clean‖ in the threat's norm, float64, pixel units; infinite where it failed."""
    queries: Int[Tensor, " batch"]
    """Forward passes of the model that the attack spent on each sample."""
    flags: tuple[str, ...] = ()
    """What shows that the model is no function of single inputs: then what it answered once is
    chance."""

    @property
    def accuracy(self) -> float:
        """Return the share of samples without success: an upper bound of robust accuracy."""
        return (~self.success).double().mean().item()
