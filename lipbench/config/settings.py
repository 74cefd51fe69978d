"""Settings of a benchmark, of its selection and evaluation, as values that cannot change."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from lipbench.adversary import Attack
from lipbench.bound import Bound
from lipbench.certificate import Certificate
from lipbench.config.rules import norm_rule, radius_rule, seed_rules, split_rules
from lipbench.dataset import Dataset
from lipbench.model import Model
from lipbench.norm import Norm
from lipbench.ranges import at_least, finite_at_least, optional, require
from lipbench.threat import Box
from lipbench.training.settings import MethodEntry, TrainingSettings

if TYPE_CHECKING:
    from lipbench.networks.anatomy import Anatomy

_EUCLIDEAN = Norm(2.0)


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """The attack on validation data whose accuracy chooses the checkpoint."""

    attack: Attack
    name: str
    """Name of the attack, with its variant if it has one."""
    norm: Norm
    epsilon: float
    """Pixel units."""
    size: int | None = None
    """Validation samples that are attacked after each epoch, the first ones; None takes all."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            radius_rule(self.epsilon),
            norm_rule(f"attack {self.name!r}", self.norm, self.attack.norms),
            optional(at_least, "size of selection", self.size, 1),
        )


@dataclass(frozen=True, kw_only=True)
class NoiseEntry:
    """Accuracy under Gaussian noise of standard deviation `sigma`, in pixel units."""

    sigma: float
    clamp: bool
    """Whether noisy inputs are clamped to the box of valid inputs."""
    draws: int = 10

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            finite_at_least("sigma", self.sigma, 0),
            at_least("draws", self.draws, 1),
        )


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """Accuracy under an attack, at each of several radii."""

    attack: Attack
    name: str
    """Name of the attack, with its variant if it has one."""
    norm: Norm
    epsilon: tuple[float, ...]
    """Pixel units."""
    size: int | None = None
    """How many test samples are attacked; None attacks all that are evaluated."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        distinct = len(set(self.epsilon)) == len(self.epsilon) > 0
        require(
            (distinct, f"epsilon must list distinct radii, got {list(self.epsilon)}"),
            *(radius_rule(epsilon) for epsilon in self.epsilon),
            optional(at_least, "size", self.size, 1),
            norm_rule(f"attack {self.name!r}", self.norm, self.attack.norms),
        )


@dataclass(frozen=True, kw_only=True)
class BoundEntry:
    """A Lipschitz value of every checkpoint."""

    bound: Bound
    name: str
    norm: Norm = _EUCLIDEAN
    domain: Box | None = None
    """The box that the value speaks of; None is all of space."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        box = self.domain
        require(
            (
                box is None or box[0] < box[1],
                f"domain must be a lower and a larger upper end, got {box and list(box)}",
            ),
            norm_rule(f"bound {self.name!r}", self.norm, self.bound.norms),
        )


@dataclass(frozen=True, kw_only=True)
class CertificateEntry:
    """Accuracy that is proved sample by sample, at the radii of the attacks in the same norm."""

    certificate: Certificate
    name: str
    norm: Norm = _EUCLIDEAN

    def __post_init__(self) -> None:
        """Check the norm."""
        require(norm_rule(f"certificate {self.name!r}", self.norm, self.certificate.norms))


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured of every checkpoint beside its plain accuracy."""

    test_size: int | None = None
    """How many test samples are evaluated; None takes all."""
    batch_size: int | None = None
    """Samples in one forward pass; None takes what suits the network and the device."""
    noise: tuple[NoiseEntry, ...] = ()
    attack: tuple[AttackEntry, ...] = ()
    bound: tuple[BoundEntry, ...] = ()
    certificate: tuple[CertificateEntry, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            optional(at_least, "test_size", self.test_size, 1),
            optional(at_least, "batch_size", self.batch_size, 1),
        )


@dataclass(frozen=True, kw_only=True)
class Heading:
    """What a benchmark is called, and the seeds of each of its methods."""

    name: str
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the name can be a folder's, and the seeds."""
        legal = self.name not in ("", ".", "..") and not set(self.name) & set("/\\\0\n")
        require(
            (legal, f"name must be usable as the name of a folder, got {self.name!r}"),
            *seed_rules(self.seeds),
        )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Methods that are trained on one data set and compared in one block of the table."""

    name: str
    dataset_name: str
    dataset: Dataset
    model_name: str
    model: Model
    training: TrainingSettings
    """What holds for every method that does not override it."""
    selection: SelectionSettings | Literal["last"]
    evaluation: EvaluationSettings
    methods: tuple[MethodEntry, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        Heading(name=self.name, seeds=self.seeds)
        by_attack = self.selection != "last"
        regression = self.dataset.task == "regression"
        classes_only = {
            "selection by an attack": by_attack,
            "evaluation.attack": self.evaluation.attack,
            "evaluation.noise": self.evaluation.noise,
            "target_accuracy": any(entry.target_accuracy is not None for entry in self.methods),
        }
        require(
            *split_rules(self.dataset),
            (
                not by_attack or self.dataset.validation_size > 0,
                "selection by an attack needs validation_size of the data set to be at least 1; "
                'or choose selection = "last"',
            ),
            *(
                (False, f"{what} needs classes, but {self.dataset_name!r} is a regression problem")
                for what, used in classes_only.items()
                if used and regression
            ),
        )

    @cached_property
    def anatomy(self) -> "Anatomy":
        """Return the sizes of its networks, for which one is built."""
        from lipbench.networks.anatomy import anatomy

        return anatomy(self.model, self.dataset)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All benchmarks of a configuration file."""

    benchmarks: tuple[Benchmark, ...]
    schema: int = 1
    seeds: tuple[int, ...] = (0,)
    """Seeds of the benchmarks that list none of their own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        """Check the version of the format, and the seeds."""
        require(
            (
                self.schema == 1,
                f"schema must be 1, got {self.schema}: the file is of another version",
            ),
            *seed_rules(self.seeds),
        )
