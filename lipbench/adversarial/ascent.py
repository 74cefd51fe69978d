"""Projected gradient ascent (PGD) in a threat model, for attacks and adversarial training."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.draws import Kind
from lipbench.adversarial.losses import margin
from lipbench.adversarial.queries import OfSamples, charged_to, on_rows
from lipbench.adversary import Classifier
from lipbench.norm import Norm
from lipbench.threat import Threat

Direction = Callable[[Float[Tensor, "batch *shape"]], Float[Tensor, "batch *shape"]]
Objective = Callable[
    [Float[Tensor, "left classes"], Int[Tensor, " left"]],
    Float[Tensor, " left"],
]
"""What the samples with the given indices climb, from their logits."""


def steepest(gradient: Float[Tensor, "batch *shape"], norm: Norm) -> Float[Tensor, "batch *shape"]:
    """Return the vector of length at most 1 along which the loss of each sample grows fastest.

    It is zero where the gradient is. Works under vmap.

    Raises:
        ValueError: If `norm` is neither 2 nor infinity.
    """
    if norm == torch.inf:
        return gradient.sign()
    if norm != Norm(2):
        raise ValueError(f"ascent steps exist for the norms 2 and inf, got {norm}.")
    # Squares of a small gradient underflow: scale by its largest entry first.
    flat = gradient.flatten(1)
    flat = flat / _positive(flat.abs().amax(dim=1, keepdim=True))
    return (flat / _positive(norm.length(flat).unsqueeze(1))).view_as(gradient)


def ascent_step(
    inputs: Float[Tensor, "batch *shape"],
    centre: Float[Tensor, "batch *shape"],
    direction: Float[Tensor, "batch *shape"],
    threat: Threat,
    length: Float[Tensor, " batch"] | float | int,
) -> Float[Tensor, "batch *shape"]:
    """Return `inputs` moved by `length` along `direction`, back in the threat model.

    Works under vmap.
    """
    return threat.project(_moved(inputs, direction, length), centre)


def random_start(
    centre: Float[Tensor, "batch *shape"], threat: Threat, rng: torch.Generator | OfSamples
) -> Float[Tensor, "batch *shape"]:
    """Return points drawn uniformly from the ball and clipped to the box.

    Raises:
        ValueError: If the norm of the threat is neither 2 nor infinity.
    """
    shape = tuple(centre.shape[1:])
    if threat.norm == torch.inf:
        offset = 2 * _draw(rng, "uniform", len(centre), shape) - 1
    elif threat.norm == Norm(2):
        normal = _draw(rng, "normal", len(centre), shape)
        share = _draw(rng, "uniform", len(centre), (1,)) ** (1 / centre[0].numel())
        unit = normal.flatten(1) / _positive(threat.norm.length(normal).unsqueeze(1))
        offset = (share * unit).view_as(normal)
    else:
        raise ValueError(f"random starts exist for the norms 2 and inf, got {threat.norm}.")
    return ascent_step(centre, centre, offset.to(centre), threat, threat.epsilon)


class Ascent(NamedTuple):
    """The worst points of an ascent and their margins, one entry per sample."""

    points: Float[Tensor, "batch *shape"]
    """The first misclassified point that was visited, else the last point."""
    margins: Float[Tensor, " batch"]
    """The largest wrong logit minus that of the label there, positive or NaN; else the largest of
    all points that were visited."""

    @property
    def survivors(self) -> Int[Tensor, " left"]:
        """Return the indices of the samples that are still classified correctly."""
        return (self.margins <= 0).nonzero().squeeze(1)

    def keep(self, rows: Int[Tensor, " some"], update: "Ascent") -> None:
        """Take over, in place, an update of the samples `rows` where its margin is larger."""
        worse = ~(update.margins <= self.margins[rows])
        self.points[rows[worse]] = update.points[worse]
        self.margins[rows[worse]] = update.margins[worse]


_FULL = 0.9
"""A batch is packed anew when less of it than this share is left: packing copies all of it."""

_SETTLING = 8
"""Steps after which it is looked whether samples have stopped moving."""


def ascend(
    model: Classifier,
    start: Float[Tensor, "batch *shape"],
    centre: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    threat: Threat,
    objective: Objective,
    direction: Direction,
    lengths: Sequence[float],
    relative: bool = True,
) -> Ascent:
    """Return the worst points on the way uphill from `start`.

    A sample is followed until it is misclassified, or has come to rest in a corner of the box that
    an l-infinity ball is; it leaves the batch when a tenth of that is followed no more. Whatever
    the objective, the margin decides, so that more steps of the same lengths never give a weaker
    attack. Parameters receive no gradients.

    Args:
        model: The classifier, in evaluation mode.
        start: First points, inside the threat model.
        centre: The unperturbed inputs.
        labels: Their classes.
        threat: What is allowed.
        objective: What the steps climb; it is given the logits of the samples that are left,
            and their indices in the batch.
        direction: Makes a step from the gradient of the objective with respect to the points.
        lengths: Length of each step.
        relative: Whether the lengths are in units of each sample's epsilon, or of a pixel.
    """
    worst = Ascent(start.clone(), torch.full_like(start.flatten(1)[:, 0], -torch.inf))
    active = torch.arange(len(start), device=start.device)
    followed = torch.ones_like(active, dtype=torch.bool)
    points, corners = start, threat.corners(centre)
    for number in range(len(lengths) + 1):
        last = number == len(lengths)
        margins, gradient = _evaluate(model, points, labels, active, None if last else objective)
        largest = worst.margins[active]
        largest = torch.where(followed & ~(margins <= largest), margins, largest)
        worst.margins[active] = largest
        alive = followed & (margins <= 0)
        done = (followed if last else followed & ~alive).nonzero().squeeze(1)
        worst.points[active[done]] = points[done]
        left = alive.nonzero().squeeze(1)
        if last or not len(left):
            break
        followed = alive
        if len(left) < _FULL * len(active):
            points, centre, labels, gradient = (
                tensor[left] for tensor in (points, centre, labels, gradient)
            )
            active, threat, model = active[left], threat.only(left), on_rows(model, left)
            corners = None if corners is None else (corners[0][left], corners[1][left])
            followed = alive[left]
        elif len(left) < len(active):
            model = charged_to(model, followed)
        length = threat.epsilon * lengths[number] if relative else lengths[number]
        before = points
        if corners is None:
            points = ascent_step(points, centre, direction(gradient), threat, length)
        else:
            points = _moved(points, direction(gradient), length).clamp_(*corners)
            if number % _SETTLING == _SETTLING - 1 and lengths[number] == max(lengths[number:]):
                # In a corner that every coordinate is pushed into, shorter steps lead nowhere.
                settled = (points == before).flatten(1).all(dim=1) & followed
                rows = settled.nonzero().squeeze(1)
                worst.points[active[rows]] = points[rows]
                followed = followed & ~settled
                model = charged_to(model, followed)
    return worst


def _moved(inputs: Tensor, direction: Tensor, length: Tensor | float | int) -> Tensor:
    if not isinstance(length, Tensor):
        return torch.add(inputs, direction, alpha=length)
    return torch.addcmul(
        inputs, direction, length.to(inputs.dtype).view(-1, *[1] * (inputs.ndim - 1))
    )


def _evaluate(
    model: Classifier, points: Tensor, labels: Tensor, rows: Tensor, objective: Objective | None
) -> tuple[Tensor, Tensor]:
    """Return the margins, and the gradient of the objective (of nothing: zeros) at the points."""
    if objective is None:
        with torch.no_grad():
            return margin(model(points), labels), torch.zeros_like(points)
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = model(points)
        (gradient,) = torch.autograd.grad(objective(logits, rows).sum(), points)
    # A gradient may be one number seen from everywhere, which cannot be written to.
    fresh = gradient.clone() if 0 in gradient.stride() else gradient
    return margin(logits.detach(), labels), fresh.nan_to_num_()


def _draw(
    rng: torch.Generator | OfSamples, kind: Kind, count: int, shape: tuple[int, ...]
) -> Tensor:
    if isinstance(rng, OfSamples):
        return rng.draw(kind, shape)
    draw = torch.randn if kind == "normal" else torch.rand
    return draw(count, *shape, generator=rng)


def _positive(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, lengths, torch.ones_like(lengths))
