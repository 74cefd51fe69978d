"""Our side of the comparison: training and attacks by the doors that a run uses."""

from typing import Any

import torch
from torch import Tensor, nn

from lipbench.adversarial.judge import judge
from lipbench.adversary import Attack
from lipbench.data.splits import Data
from lipbench.method import Method
from lipbench.model import Model
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.seeds import stream
from lipbench.speed import plain
from lipbench.threat import Threat
from lipbench.training.ensemble import TrainingState
from lipbench.training.epoch import train_epoch
from lipbench.training.optimiser import Optimizer
from lipbench.training.settings import MethodEntry, TrainingSettings
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial

_STARTS = 2
"""The second drives towards another class: that finds more than to go on towards the first one."""


def trainer(data: Data, *, trials: int, epochs: int, pairs: int | None = None) -> Trainer:
    """Return what trains one stack by the protocol of the yardsticks, seeds 0, 1, ...

    Args:
        data: The samples.
        trials: How many networks.
        epochs: How many epochs.
        pairs: Train with CLIP and this many pairs; None trains the standard way.
    """
    if pairs is None:
        name, fields = "standard", dict[str, Any]()
    else:
        name, fields = "clip", {"lambda_": plain.STRENGTH, "pairs": pairs}
    sgd = Optimizer(name="sgd", lr=plain.LEARNING_RATE, momentum=plain.MOMENTUM)
    entry = MethodEntry(
        name=name,
        method=load("lipbench.methods", name, Method)(**fields),
        training=TrainingSettings(
            epochs=epochs, batch_size=plain.BATCH_SIZE, warmup=0, optimizer=sgd
        ),
    )
    shape: dict[str, Any] = {"widths": (64, 64), "activation": "sigmoid"}
    model = load("lipbench.models", "mlp", Model)(**shape)
    return Trainer([Trial(entry=entry, seed=seed) for seed in range(trials)], model, data)


def train(stack: Trainer, state: TrainingState) -> list[nn.Module]:
    """Take all steps of a training and none of the measurements between its epochs.

    Returns:
        The networks.

    Raises:
        ArithmeticError: If one diverged.
    """
    while state.epoch < stack.training.epochs:
        losses, _ = train_epoch(stack.ensemble, state, stack.step)
        state.epoch += 1
    if not losses.isfinite().all():
        raise ArithmeticError("a network of the comparison diverged.")
    return [net.module() for net in stack.ensemble.nets(state)]


def robust_accuracy(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> float:
    """Return the accuracy under `pgd` in the norm inf, as the judge finds it.

    The worst of four ascents counts: of the margin and of cross entropy, each from two starts. Each
    loss has `steps` steps, which fall linearly to zero from either start and on the whole go as far
    as steps of `step_size`, half as many and twice as long. Epsilon and `step_size` are in pixel
    units.
    """
    from_each = -(-steps // _STARTS)
    settings: dict[str, Any] = {
        "steps": from_each,
        "starts": _STARTS,
        "losses": ("margin", "cross_entropy"),
        # The mean of lengths that fall linearly is half the first one.
        "rel_step": 2 * step_size * steps / from_each / epsilon,
    }
    attack = load("lipbench.attacks", "pgd", Attack)(**settings)
    radii = torch.full((len(inputs),), epsilon, dtype=torch.float64, device=inputs.device)
    threat = Threat(norm=Norm(torch.inf), epsilon=radii, domain=(0.0, 1.0))
    rng = stream(0, "attack", "pgd", "inf")
    return judge(attack, model, inputs, targets, threat, rng, batch_size=len(inputs)).accuracy
