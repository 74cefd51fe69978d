"""The nearest wrong classes by a linearised margin (DeepFool)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.losses import lead
from lipbench.adversary import Classifier
from lipbench.norm import Norm


def nearest_rivals(
    model: Classifier,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    norm: Norm,
    candidates: int = 9,
) -> Int[Tensor, "batch rivals"]:
    """Return the wrong classes of each sample, ordered by the distance to the decision boundary.

    The distance is that of the network linearised at the input, (z_y - z_j) / ‖∇(z_y - z_j)‖ in
    the dual norm: exact for a linear classifier without a box, a guess for others.

    Args:
        model: The classifier.
        inputs: Points at which to linearise.
        labels: Their classes.
        norm: Norm of the distance.
        candidates: How many of the wrong classes are considered, those of the largest logits.

    Source:
        Moosavi-Dezfooli, Fawzi, Frossard, DeepFool, CVPR 2016, https://arxiv.org/abs/1511.04599,
        section 3.
    """
    with torch.enable_grad():
        points = inputs.detach().requires_grad_()
        logits = model(points)
        is_label = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        order = logits.detach().masked_fill(is_label, -torch.inf).argsort(dim=1, descending=True)
        order = order[:, : min(candidates, logits.shape[1] - 1)]
        distances = []
        for rivals in order.unbind(1):
            gap = -lead(logits, labels, rivals)
            (gradient,) = torch.autograd.grad(gap.sum(), points, retain_graph=True)
            distances.append(gap.detach() / norm.dual().length(gradient))
    nearness = torch.stack(distances, dim=1).nan_to_num(nan=torch.inf).argsort(dim=1, stable=True)
    return order.gather(1, nearness)
