"""Rules of benchmark settings: radii, norms, seeds, and the fields of a data set."""

import math

from lipbench.dataset import Dataset
from lipbench.norm import Norm
from lipbench.ranges import Rule, at_least, optional


def radius_rule(epsilon: float) -> Rule:
    """Return the rule for the radius of an attack."""
    return 0 <= epsilon < math.inf, f"epsilon must be finite and ≥ 0 pixel units, got {epsilon}"


def norm_rule(what: str, norm: Norm, norms: frozenset[Norm]) -> Rule:
    """Return the rule that `what` works on a norm, out of those it is made for."""
    listed = " or ".join(str(allowed) for allowed in sorted(norms))
    return norm in norms, f"norm of {what} must be {listed}, got {norm}"


def seed_rules(seeds: tuple[int, ...]) -> tuple[Rule, ...]:
    """Return the rules for a list of seeds."""
    listed = list(seeds)
    return (
        (len(seeds) > 0, "seeds must list at least one seed"),
        (all(seed >= 0 for seed in seeds), f"seeds must be at least 0, got {listed}"),
        (len(set(seeds)) == len(seeds), f"seeds must differ, got {listed}"),
    )


def split_rules(dataset: Dataset) -> tuple[Rule, ...]:
    """Return the rules for the fields that every data set has."""
    sizes = {
        "train_size": (1, dataset.train_size),
        "pair_size": (0, dataset.pair_size),
        "validation_size": (0, dataset.validation_size),
        "split_seed": (0, dataset.split_seed),
    }
    kept, known = list(dataset.classes), range(dataset.published_outputs)
    split_sizes = [
        size or 0 for size in (dataset.train_size, dataset.pair_size, dataset.validation_size)
    ]
    # How many samples are of some classes only the data know, and a sampler has no end of them.
    is_known = not kept and not dataset.pair_sampler
    return (
        *(
            optional(at_least, f"dataset: {key}", value, least)
            for key, (least, value) in sizes.items()
        ),
        (
            not is_known or sum(split_sizes) <= dataset.published_size,
            "dataset: train_size, pair_size and validation_size add up to "
            f"{sum(split_sizes)}, and there are {dataset.published_size} training samples",
        ),
        (
            not kept or (len(set(kept)) == len(kept) > 1 and set(kept) <= set(known)),
            f"dataset: classes must be two or more of 0 to {len(known) - 1}, got {kept}",
        ),
    )
