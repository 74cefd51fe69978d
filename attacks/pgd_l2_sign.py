"""Sign PGD in an l2 ball: the attack of the CLIP paper."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.ascent import ascend
from lipbench.adversarial.losses import error_odds
from lipbench.adversary import Attack, Classifier
from lipbench.norm import Norm
from lipbench.ranges import positive, require
from lipbench.threat import Threat


@dataclass(frozen=True, kw_only=True)
class PGDL2Sign(Attack):
    """x ← Π(x + alpha·sign ∇ℓ) from the input itself, ℓ cross entropy, Π onto an l2 ball.

    A sign step is the steepest for the l-infinity norm and not for this ball, so the attack is
    weaker than `pgd` with norm 2. It is here to measure what the paper measured.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks, SSVM 2021, https://arxiv.org/abs/2103.12531, equation (14). The start, and that
        the first misclassified iterate counts, are ours: the paper names neither. The
        gradient is taken of the log-odds, whose sign is that of cross entropy without its
        underflow.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})
    samplewise: ClassVar[bool] = True

    steps: int = 100
    alpha: float = 0.25
    """How far a step moves each coordinate, in pixel units; the paper's value for epsilon 2."""

    def __post_init__(self) -> None:
        """Refuse settings that attack nothing.

        Raises:
            ValueError: If a number is not positive.
        """
        require(
            positive("steps of pgd_l2_sign", self.steps),
            positive("alpha of pgd_l2_sign", self.alpha),
        )

    @property
    def cost(self) -> float:
        """Return the number of evaluations."""
        return self.steps + 1.0

    def propose(
        self,
        model: Classifier,
        inputs: Float[Tensor, "batch *shape"],
        labels: Int[Tensor, " batch"],
        threat: Threat,
        rng: torch.Generator,
    ) -> Float[Tensor, "batch *shape"]:
        """Return the first misclassified iterate of each sample, else the last."""
        return ascend(
            model,
            inputs,
            inputs,
            labels,
            threat,
            lambda logits, rows: error_odds(logits, labels[rows]),
            torch.sign,
            [self.alpha] * self.steps,
            relative=False,
        ).points
