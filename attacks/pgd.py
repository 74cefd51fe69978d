"""Projected gradient descent (PGD), in the norms 1, 2 and infinity."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.ascent import Ascent, Objective, ascend, random_start, steepest
from lipbench.adversarial.losses import lead, scale_free_error_odds
from lipbench.adversarial.problem import Problem
from lipbench.adversarial.queries import numbers
from lipbench.adversarial.rivals import nearest_rivals
from lipbench.adversary import Attack, Classifier
from lipbench.norm import Norm
from lipbench.ranges import positive, require
from lipbench.threat import Threat

Loss = Literal["margin", "cross_entropy"]


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Steepest ascent of several losses from several starts, the worst outcome kept.

    The first start is the input itself, the others are uniform in the ball; the lengths of the
    steps fall linearly to zero. The loss `margin` drives towards one wrong class: the nearest at
    the first start, the second nearest at the second, and so on, nearest by the network
    linearised at the input. `cross_entropy` drives away from the label, at a temperature set by
    the spread of the logits. Neither depends on the scale of the logits. A sample is tried no
    more once it is misclassified.

    Source:
        Madry, Makelov, Schmidt, Tsipras, Vladu, Towards Deep Learning Models Resistant to
        Adversarial Attacks, ICLR 2018, https://arxiv.org/abs/1706.06083. Ours are the losses,
        the falling steps, and that the first misclassified point counts instead of the last.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2), Norm(torch.inf)})
    samplewise: ClassVar[bool] = True

    steps: int = 20
    """Steps from each start, for each loss."""
    starts: int = 3
    losses: tuple[Loss, ...] = ("cross_entropy", "margin")
    rel_step: float = 0.5
    """Length of the first step in units of epsilon."""

    def __post_init__(self) -> None:
        """Refuse settings that attack nothing.

        Raises:
            ValueError: If a number is not positive or no loss, or an unknown one, is named.
        """
        require(
            positive("steps of pgd", self.steps),
            positive("starts of pgd", self.starts),
            positive("rel_step of pgd", self.rel_step),
            (
                bool(self.losses) and set(self.losses) <= set(get_args(Loss)),
                f"losses of pgd must be some of {', '.join(get_args(Loss))}, "
                f"got {list(self.losses)}",
            ),
        )

    @property
    def cost(self) -> float:
        """Return the number of evaluations, that of the network's linearisation included."""
        return self.steps * self.starts * len(self.losses) + 10.0

    def propose(
        self,
        model: Classifier,
        inputs: Float[Tensor, "batch *shape"],
        labels: Int[Tensor, " batch"],
        threat: Threat,
        rng: torch.Generator,
    ) -> Float[Tensor, "batch *shape"]:
        """Return the first misclassified point met for each sample, else where an ascent ended."""
        problem = Problem(model=model, inputs=inputs, labels=labels, threat=threat)
        worst = Ascent(inputs.clone(), torch.full_like(inputs.flatten(1)[:, 0], -torch.inf))
        rivals: Tensor | None = None
        for number, (start, loss) in enumerate(product(range(self.starts), self.losses)):
            left = worst.survivors
            if not len(left):
                break
            remaining = problem.only(left)
            if loss == "margin" and rivals is None:
                # Of those that the losses before have left: it takes as many passes as classes.
                rivals = _rivals(remaining, left, len(problem))
            first = remaining.inputs
            if start > 0:
                first = random_start(first, remaining.threat, numbers(remaining.model, rng, number))
            rival = None if rivals is None else rivals[left, start % rivals.shape[1]]
            worst.keep(
                left, self._climb(remaining, first, _objective(loss, remaining.labels, rival))
            )
        return worst.points

    def _climb(self, problem: Problem, first: Tensor, objective: Objective) -> Ascent:
        return ascend(
            problem.model,
            first,
            problem.inputs,
            problem.labels,
            problem.threat,
            objective,
            lambda gradient: steepest(gradient, problem.threat.norm),
            [self.rel_step * (1 - step / self.steps) for step in range(self.steps)],
        )


def _rivals(problem: Problem, rows: Tensor, samples: int) -> Tensor:
    """Return the wrong classes of all `samples`, the nearest first; known for `rows` alone."""
    nearest = nearest_rivals(problem.model, problem.inputs, problem.labels, problem.threat.norm)
    rivals = problem.labels.new_zeros(samples, nearest.shape[1])
    rivals[rows] = nearest
    return rivals


def _objective(loss: Loss, labels: Tensor, rival: Tensor | None) -> Objective:
    if loss == "cross_entropy" or rival is None:
        return lambda logits, rows: scale_free_error_odds(logits, labels[rows])
    return lambda logits, rows: lead(logits, labels[rows], rival[rows])
