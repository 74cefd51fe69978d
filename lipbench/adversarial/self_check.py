"""Check that an attack with epsilon 0 changes no prediction."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.attack_results import unattacked
from lipbench.adversarial.judge import judge_epsilons, judge_networks
from lipbench.adversary import Attack, AttackInvalid, AttackResult, Classifier
from lipbench.networks.network_stack import Networks
from lipbench.norm import Norm
from lipbench.threat import Box

_SAMPLES = 64


def self_check(
    attack: Attack,
    model: Classifier,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    norm: Norm,
    domain: Box | None,
    rng: torch.Generator,
) -> None:
    """Check, on the first 64 samples, that an attack with epsilon 0 changes no prediction.

    A model that answers at random or an attack that divides by epsilon do not pass.

    Raises:
        AttackInvalid: If it does, or as `judge`.
    """
    inputs, labels = inputs[:_SAMPLES], labels[:_SAMPLES]
    (attacked,) = judge_epsilons(attack, model, inputs, labels, norm, [0.0], domain, rng)
    _compare(attack, model, inputs, labels, attacked)


def check_networks(
    attack: Attack,
    networks: Networks,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    norm: Norm,
    domain: Box | None,
    rngs: Sequence[torch.Generator],
) -> None:
    """Do the check of `self_check` for each network.

    Raises:
        AttackInvalid: If it fails for one, or as `judge`.
    """
    inputs, labels = inputs[:_SAMPLES], labels[:_SAMPLES]
    results = judge_networks(attack, networks, inputs, labels, norm, [0.0], domain, rngs)
    for number, (attacked,) in enumerate(results):
        _compare(attack, networks.alone(number), inputs, labels, attacked)


def _compare(
    attack: Attack, model: Classifier, inputs: Tensor, labels: Tensor, attacked: AttackResult
) -> None:
    clean = ~unattacked(model, inputs, labels, _SAMPLES).success
    if not torch.equal(clean, ~attacked.success):
        raise AttackInvalid(
            f"with epsilon 0, {type(attack).__name__} leaves {int((~attacked.success).sum())} of "
            f"{len(inputs)} inputs correct, but {int(clean.sum())} are: is the model random?"
        )
