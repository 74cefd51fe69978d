"""What this project does in the comparison, by the doors that a run uses."""

from typing import Any

import torch
from torch import Tensor, nn

from lipbench.adversary import Attack
from lipbench.data import Data
from lipbench.judge import judge
from lipbench.method import Method
from lipbench.model import Model
from lipbench.net import Net
from lipbench.norm import Norm
from lipbench.optimiser import Optimizer
from lipbench.registry import load
from lipbench.seeds import stream
from lipbench.settings import MethodEntry, TrainingSettings
from lipbench.speed import plain
from lipbench.threat import Threat
from lipbench.trainer import Trainer
from lipbench.trial import Outcome, Trial


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


def networks(stack: Trainer, outcomes: list[Outcome]) -> list[nn.Module]:
    """Return the networks after the last epoch.

    Raises:
        ArithmeticError: If one diverged.
    """
    for outcome in outcomes:
        if outcome.state != "done":
            raise ArithmeticError(f"a network of the comparison diverged: {outcome.message}.")
    last = [outcome.checkpoints["last"] for outcome in outcomes]
    return [Net(stack.ensemble.skeleton, one.params, one.buffers).module() for one in last]


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

    The worst of two ascents counts, of the margin and of cross entropy, whose steps fall linearly
    to zero and are `step_size` long on average. Epsilon and `step_size` are in pixel units.
    """
    settings: dict[str, Any] = {
        "steps": steps,
        "starts": 1,
        "losses": ("cross_entropy", "margin"),
        "rel_step": 2 * step_size / epsilon,
    }
    attack = load("lipbench.attacks", "pgd", Attack)(**settings)
    radii = torch.full((len(inputs),), epsilon, dtype=torch.float64, device=inputs.device)
    threat = Threat(norm=Norm(torch.inf), epsilon=radii, domain=(0.0, 1.0))
    rng = stream(0, "attack", "pgd", "inf")
    return judge(attack, model, inputs, targets, threat, rng, batch_size=len(inputs)).accuracy
