"""The attacks of the torchattacks package, as many as can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from inspect import signature
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lipbench.adversary import Attack, Classifier
from lipbench.norm import Norm
from lipbench.ranges import require
from lipbench.threat import Threat

L2, LINF = Norm(2), Norm(torch.inf)
# Left out: CW, which freezes saturated pixels and depends on the batch; AutoAttack, which takes
# too few steps; attacks that need square images, smoothed networks or another norm.
VARIANTS: dict[str, frozenset[Norm]] = {
    "APGD": frozenset({L2, LINF}),
    "APGDT": frozenset({L2, LINF}),
    "BIM": frozenset({LINF}),
    "EOTPGD": frozenset({LINF}),
    "FFGSM": frozenset({LINF}),
    "FGSM": frozenset({LINF}),
    "MIFGSM": frozenset({LINF}),
    "NIFGSM": frozenset({LINF}),
    "PGD": frozenset({LINF}),
    "PGDL2": frozenset({L2}),
    "RFGSM": frozenset({LINF}),
    "SINIFGSM": frozenset({LINF}),
    "TPGD": frozenset({LINF}),
    "VMIFGSM": frozenset({LINF}),
    "VNIFGSM": frozenset({LINF}),
}


@dataclass(frozen=True, kw_only=True)
class TorchAttacks(Attack):
    """One attack of torchattacks, `variant`; it needs the domain [0, 1] and one epsilon for all.

    Cross entropy with logits of a large scale makes most of them weak: compare with `pgd`.

    Source:
        Kim, Torchattacks: A PyTorch Repository for Adversarial Attacks, 2020,
        https://arxiv.org/abs/2010.01950.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({L2, LINF})

    variant: str
    """Name of the attack in torchattacks, such as PGD."""
    steps: int | None = None
    """Steps, where the attack has such an argument; None keeps its default."""
    alpha: float | None = None
    """Length of a step in pixel units; None is 2.5 epsilon / steps, or 1.25 epsilon for FFGSM."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other keyword arguments of the attack's class, such as `loss` or `n_restarts`."""

    def __post_init__(self) -> None:
        """Refuse a variant that is unknown or cannot be trusted.

        Raises:
            ValueError: If `variant` is not one of `variants()`.
        """
        require(
            (
                self.variant in VARIANTS,
                f"torchattacks:{self.variant} is not offered; there are {', '.join(VARIANTS)}",
            ),
        )
        object.__setattr__(self, "norms", VARIANTS[self.variant])

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """Return the names that `variant` may take.

        Raises:
            ModuleNotFoundError: If torchattacks is not installed.
        """
        if find_spec("torchattacks") is None:
            raise ModuleNotFoundError(
                'torchattacks is not installed: pip install "lipbench[torchattacks]". If its pin '
                "on an old requests conflicts, pip install --no-deps torchattacks works, too."
            )
        return tuple(VARIANTS)

    @property
    def cost(self) -> float:
        """Return the number of steps, as far as it is known."""
        return float(self.steps or 10)

    def propose(
        self,
        model: Classifier,
        inputs: Float[Tensor, "batch *shape"],
        labels: Int[Tensor, " batch"],
        threat: Threat,
        rng: torch.Generator,
    ) -> Float[Tensor, "batch *shape"]:
        """Return what the library's attack returns.

        A threat model or a number of classes that it cannot handle is a ValueError.
        """
        self.variants()
        import torchattacks

        attack = getattr(torchattacks, self.variant)
        self._refuse(model, inputs, threat)
        if not threat.epsilon.any():
            return inputs  # some of the attacks would divide by epsilon
        settings = self._settings(set(signature(attack).parameters), threat)
        wrapped = _AsImages(model, inputs)
        if "seed" in signature(attack).parameters:
            settings = {"seed": int(torch.randint(2**31, (), generator=rng)), **settings}
        if self.variant == "APGDT":
            settings = {"n_classes": _classes(model, inputs), **settings}
        return attack(wrapped, **settings)(wrapped.as_images(inputs), labels).view_as(inputs)

    def _refuse(self, model: Classifier, inputs: Tensor, threat: Threat) -> None:
        name = f"torchattacks:{self.variant}"
        if threat.norm not in self.norms:
            known = " and ".join(str(norm) for norm in sorted(self.norms))
            raise ValueError(f"{name} works in norm {known}, got {threat.norm}.")
        if threat.domain != (0, 1):
            raise ValueError(f"{name} needs the domain (0, 1), got {threat.domain}.")
        if threat.epsilon.min() != threat.epsilon.max():
            raise ValueError(f"{name} needs one epsilon for all samples, got several.")
        # Its losses divide by the third and by the fourth largest logit, in this order.
        needed = {"APGD": 3 if self.options.get("loss") == "dlr" else 2, "APGDT": 4}
        classes = _classes(model, inputs) if self.variant in needed else 2
        if classes < needed.get(self.variant, 2):
            raise ValueError(
                f"{name} needs {needed[self.variant]} classes or more for its loss, got {classes}."
            )

    def _settings(self, accepted: set[str], threat: Threat) -> dict[str, Any]:
        epsilon = float(threat.epsilon[0])
        given = {"steps": self.steps, "alpha": self.alpha, **self.options}
        settings = {name: value for name, value in given.items() if value is not None}
        allowed = accepted - {"model", "eps", "norm", "n_classes"}
        for name in settings.keys() - allowed:
            raise ValueError(
                f"torchattacks:{self.variant} has no option {name!r}; it has "
                f"{', '.join(sorted(allowed)) or 'none'}."
            )
        if "alpha" in accepted:
            # The defaults of the library suit epsilon 8/255 and no other.
            steps = self.steps or (10 if "steps" in accepted else 2)
            settings.setdefault("alpha", 2.5 * epsilon / steps)
        if "norm" in accepted:
            settings["norm"] = "L2" if threat.norm == L2 else "Linf"
        return {"eps": epsilon, **settings}


class _AsImages(nn.Module):
    """A classifier of images (N, C, H, W), which the library insists on, made from any other."""

    def __init__(self, model: Classifier, like: Tensor) -> None:
        super().__init__()
        self.model = model
        self.shape = like.shape[1:]
        # The library finds the device by the first parameter.
        self.anchor = nn.Parameter(like.new_empty(0), requires_grad=False)
        self.training = False

    def as_images(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.ndim == 4 else inputs.reshape(len(inputs), 1, 1, -1)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.reshape(len(images), *self.shape))


def _classes(model: Classifier, inputs: Tensor) -> int:
    with torch.no_grad():
        return model(inputs[:1]).shape[1]
