"""The works that are timed, one after the other."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from lipbench.speed.attacks import pgd_linf
from lipbench.speed.bench import Bench, Scale
from lipbench.speed.figure import Figure
from lipbench.speed.training import clip64_cost, clip500_stacked, standard_stacked
from lipbench.speed.whole_runs import noop_rerun, run_overhead

WORKS: Mapping[str, Callable[[Bench], Figure]] = {
    "standard_stacked": standard_stacked,
    "clip500_stacked": clip500_stacked,
    "clip64_cost": clip64_cost,
    "pgd_linf": pgd_linf,
    "run_overhead": run_overhead,
    "noop_rerun": noop_rerun,
}
_WITHOUT_SAMPLES = ("run_overhead", "noop_rerun")


def measure(on: Bench, names: Iterable[str]) -> dict[str, Figure]:
    """Return the figure of each work in `names`.

    Raises:
        DataMissing: If a work needs samples that cannot be had; before anything is measured.
    """
    chosen = [name for name in WORKS if name in set(names)]
    if any(name not in _WITHOUT_SAMPLES for name in chosen):
        on.say("reading the samples")
        samples = on.read(on.device)
        on = replace(on, read=lambda device: samples)
    return {name: WORKS[name](replace(on, say=_prefixed(name, on.say))) for name in chosen}


def bench(device: torch.device, repeats: int, say: Callable[[str], None]) -> Bench:
    """Return what is measured on a device, as much as its limits demand."""
    scale = Scale(stack=35) if device.type == "cuda" else Scale()
    return Bench(device=device, repeats=repeats, scale=scale, say=say)


def _prefixed(name: str, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say(f"{name}: {text}")
