"""Attack any classifier with any installed attack."""

import math
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.judge import BATCH_SIZE, judge
from lipbench.adversarial.samples import checked_inputs, checked_labels, classifier_of
from lipbench.adversarial.self_check import self_check
from lipbench.adversary import Attack, AttackResult, Classifier
from lipbench.networks.determinism import irregularity
from lipbench.networks.modes import evaluation_mode
from lipbench.norm import Norm
from lipbench.registry import resolve
from lipbench.threat import Box, Threat


def attack(
    model: Classifier,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    name: str = "pgd",
    norm: float | int = math.inf,
    epsilon: float | int | Float[Tensor, " batch"] = 0.1,
    domain: Box | None = (0, 1),
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    **options: Any,
) -> AttackResult:
    """Return adversarial inputs, and whether and at what distance each one fools the model.

    A model that is seen not to answer an input in one way is flagged in the result.

    Errors are those of `lipbench.adversarial.judge.judge`, a PluginError if there is no such
    attack, and a ValueError for options, norms, epsilons, inputs or labels that are not possible,
    and for a model that does not fit them.

    Args:
        model: Maps inputs in pixel units to logits; one logit g for two classes is read as (0, g).
        x: Clean inputs.
        y: Their labels. A clean mistake counts as a success at distance 0.
        name: An installed attack, such as "pgd" or "torchattacks:PGD".
        norm: Norm of the ball, 1, 2 or inf.
        epsilon: Radius of the ball in pixel units, for all samples or for each.
        domain: Smallest and largest value of a valid input; None is all of space.
        seed: Fixes everything random.
        batch_size: Samples at a time.
        options: Fields of the attack.
    """
    plugin = _configured(name, options)
    x = checked_inputs(x)
    y = checked_labels(y, x)
    model = classifier_of(model, x, y)
    radius = _radii(epsilon, x)
    threat = Threat(norm=Norm(norm), epsilon=radius, domain=domain)
    rng = torch.Generator().manual_seed(seed)
    self_check(plugin, model, x, y, threat.norm, domain, rng)
    with evaluation_mode(model):
        reason = irregularity(model, x)
    result = judge(plugin, model, x, y, threat, rng, batch_size=batch_size)
    return result if reason is None else replace(result, flags=(f"no function: {reason}",))


def _radii(epsilon: Any, inputs: Tensor) -> Tensor:
    radius = torch.as_tensor(epsilon, dtype=torch.float64, device=inputs.device)
    if radius.ndim and radius.shape != inputs.shape[:1]:
        raise ValueError(
            f"epsilon has shape {tuple(radius.shape)}, expected one number, or one for each of "
            f"the {len(inputs)} inputs."
        )
    return radius.expand(len(inputs))


def _configured(name: str, options: dict[str, Any]) -> Attack:
    plugin, fixed = resolve("lipbench.attacks", name, Attack)
    known = {field.name for field in fields(plugin)} - fixed.keys()
    for option in options.keys() - known:
        close = get_close_matches(option, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"attack {name!r} has no option {option!r}.{hint} "
            f"Options: {', '.join(sorted(known)) or 'none'}."
        )
    return plugin(**fixed, **options)
