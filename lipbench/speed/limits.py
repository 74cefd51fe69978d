"""The works that are measured, and what each must reach. Free of torch: the command asks first."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A number that a ratio must not miss."""

    value: float
    largest: bool = False
    """Whether it is the largest good value, and not the smallest."""

    def reached(self, ratio: float) -> bool:
        """Return whether a ratio is as good as the limit; NaN never is."""
        return ratio <= self.value if self.largest else ratio >= self.value

    def __str__(self) -> str:
        return f"{'at most' if self.largest else 'at least'} {self.value:g}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the ratios of one work must reach; None where nothing is demanded."""

    plain: Limit | None = None
    """Of the work's ratio, over the plain yardstick where it has one."""
    eager: Limit | None = None


ON_CPU: Mapping[str, Limits] = {
    "standard_stacked": Limits(plain=Limit(value=12.0), eager=Limit(value=2.0)),
    "clip500_stacked": Limits(plain=Limit(value=5.0)),
    "clip64_cost": Limits(plain=Limit(value=3.5, largest=True)),
    "pgd_linf": Limits(plain=Limit(value=2.0)),
    "run_overhead": Limits(plain=Limit(value=1.05, largest=True)),
    "noop_rerun": Limits(plain=Limit(value=5.0, largest=True)),
}
"""Set for two cores. The keys are all works, in the order in which they are measured."""

ON_GPU: Mapping[str, Limits] = {
    "standard_stacked": Limits(plain=Limit(value=100.0)),
    "clip500_stacked": Limits(plain=Limit(value=100.0)),
}
"""With 35 networks stacked, against the yardstick on the same GPU."""


def refusals() -> dict[str, str]:
    """Return which works cannot be measured here, and why."""
    if find_spec("torchattacks") is not None:
        return {}
    return {"pgd_linf": "torchattacks is not installed: pip install 'lipbench[torchattacks]'"}
